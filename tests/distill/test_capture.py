import copy

import numpy as np
import pytest
import torch
from model_folders import UnknownConfig
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    Data2VecTextConfig,
    Data2VecTextForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from tinybert_dist.data.batches import Collator
from tinybert_dist.data.tokens import Sample, Samples
from tinybert_dist.distill.capture import (
    can_pack,
    classify,
    encode,
    masked_lm_head,
    require_understood,
    uses_capture,
)
from tinybert_dist.distill.layer_map import build_layer_map
from tinybert_dist.distill.modules import Distiller, DistillWeights
from tinybert_dist.distill.teacher import Teacher
from tinybert_dist.encoders import truncate_layers

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}
SIZES |= {"max_position_embeddings": 42, "num_labels": 3}
FAMILIES = {
    "bert": (BertForSequenceClassification, BertConfig(**SIZES)),
    "roberta": (RobertaForSequenceClassification, RobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1)),
    "data2vec": (
        Data2VecTextForSequenceClassification,
        Data2VecTextConfig(**SIZES, pad_token_id=1, type_vocab_size=1),
    ),
    "electra": (ElectraForSequenceClassification, ElectraConfig(**SIZES, embedding_size=16)),
}


LENGTHS = (9, 4, 13, 1)
GROUPED = (*[2] * 30, *[16] * 10, 17, *[39] * 5, 40)  # three groups: one without padding


def samples(lengths=LENGTHS):
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 50, n) for n in lengths]
    starts = [(n + 1) // 2 if n > 3 else n for n in lengths]
    return Samples.of(
        [Sample(i, ids, start, 0.0) for i, (ids, start) in enumerate(zip(rows, starts, strict=True))]
    )


def build(family):
    torch.manual_seed(0)
    model_class, config = FAMILIES[family]
    return model_class(copy.deepcopy(config)).eval().double()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lengths", [LENGTHS, GROUPED])
def test_packed_equals_transformers_own_padded_forward(family, lengths):
    model = build(family)
    pad = model.config.pad_token_id
    padded = Collator("padded", pad)(samples(lengths))
    segments = padded.token_type_ids * (model.config.type_vocab_size > 1)
    with torch.no_grad():
        expected = model(padded.input_ids, attention_mask=padded.attention_mask, token_type_ids=segments)
        uses_capture(model)
        for layout in ("packed", "padded", "fixed"):
            batch = Collator(layout, pad, 40)(samples(lengths))
            encoded = encode(model, batch, {0, 2})
            logits = classify(model, batch, encoded.hidden[-1])
            assert torch.allclose(logits, expected.logits, atol=1e-10), layout
            assert set(encoded.attention) == {0, 2}
    assert can_pack(model, Collator("packed", pad), Collator("padded", pad), samples((3, 7)))


@pytest.mark.parametrize("lengths", [LENGTHS, GROUPED])
def test_packed_captures_equal_padded_captures(lengths):
    model = uses_capture(build("bert"))
    with torch.no_grad():
        packed = encode(model, Collator("packed", 0)(samples(lengths)), {1})
        padded = encode(model, Collator("padded", 0)(samples(lengths)), {1})
    (padded_blocks,) = padded.attention[1]
    assert len(packed.attention[1]) == (3 if lengths == GROUPED else 1)
    for which in (0, 1):  # queries, keys
        blocks = [block for group in packed.attention[1] for block in group[which]]
        for length, one, other in zip(lengths, blocks, padded_blocks[which], strict=True):
            assert torch.allclose(one[:, :length], other[:, :length], atol=1e-12)
            assert not one[:, length:].any()  # zeros, so the losses need no mask


def test_a_model_with_positions_of_its_own_is_found_unpackable():
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = UnknownConfig(**sizes, intermediate_size=40, max_position_embeddings=40)
    model = uses_capture(RobertaModel(config))
    model.train()
    assert not can_pack(model, Collator("packed", 1), Collator("padded", 1), samples((3, 7)))
    assert model.training


def test_distilbert_is_read_as_it_reads_itself():
    config = DistilBertConfig(
        vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=40, max_position_embeddings=40, num_labels=3
    )
    torch.manual_seed(0)
    model = uses_capture(DistilBertForSequenceClassification(config)).eval()
    batch = Collator("padded", 0)(samples((3, 7)))
    require_understood(model, batch)
    with torch.no_grad():
        encoded = encode(model, batch, {0, 1})
        own = model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
        assert torch.equal(classify(model, batch, encoded.hidden[-1]), own.logits)
    assert all(map(torch.equal, encoded.hidden, own.hidden_states)) and set(encoded.attention) == {0, 1}


@pytest.mark.parametrize("family", ["modernbert", "albert", "mpnet"])
def test_a_family_that_is_read_wrongly_is_refused(family):
    """ModernBERT's attention is captured, but its head would get the wrong rows, without a word."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "pad_token_id": 0, "max_position_embeddings": 40}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **sizes))
    with pytest.raises(ValueError, match="cannot be used"):
        require_understood(uses_capture(model), Collator("padded", 0)(samples((3, 7))))
    assert model.training


def test_dropping_the_block_mask_is_noticed():
    """Guard: without the mask of shorter sequences packed and padded differ."""
    model = uses_capture(build("bert"))

    def unmasked(batch_samples):
        from dataclasses import replace

        batch = Collator("packed", 0)(batch_samples)
        return replace(batch, block_masks=(None,) * len(batch.block_masks))

    assert not can_pack(model, unmasked, Collator("padded", 0), samples((3, 9)))


def test_teacher_stops_after_the_highest_mapped_layer():
    whole = uses_capture(build("bert"))
    batch = Collator("packed", 0)(samples())
    with torch.no_grad():
        expected = encode(whole, batch).hidden
    teacher = Teacher(build("bert"), build_layer_map("1:1,2:2", 2, 3))
    signals = teacher(batch)
    assert len(teacher.model.encoder.layer) == 2
    assert set(signals.hidden) == {0, 1, 2} and set(signals.attention) == {1, 2} and signals.logits is None
    for layer, hidden in signals.hidden.items():
        assert torch.equal(hidden, expected[layer])
    assert teacher.forwards == 1
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_teacher_logits_follow_the_label_order():
    order = torch.tensor([2, 0, 1])
    batch = Collator("packed", 0)(samples())
    plain, ordered = (Teacher(build("bert"), with_logits=True, label_order=o) for o in (None, order))
    assert torch.equal(ordered(batch).logits, plain(batch).logits[:, order])


def test_truncation_leaves_shallow_models_alone():
    model = build("bert")
    truncate_layers(model, 5)
    assert model.config.num_hidden_layers == len(model.bert.encoder.layer) == 3


def test_masked_lm_head_is_one_module():
    model = BertForMaskedLM(BertConfig(**SIZES))
    assert masked_lm_head(model) is model.cls
    with pytest.raises(ValueError, match="not one module"):
        masked_lm_head(build("bert"))


def test_attention_written_out_for_training_equals_the_fused_one():
    """On CPUs in bf16 with gradients; with dropout the same lines run, seen by where the zeros are."""
    model = uses_capture(build("bert")).bfloat16()
    batch = Collator("packed", 0)(samples(GROUPED))
    trained = encode(model, batch).hidden[-1]
    with torch.no_grad():
        fused = encode(model, batch).hidden[-1]
    assert torch.allclose(trained, fused, atol=0.1)
    model.float().train()
    model.config.hidden_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "scaling"):
            module.dropout.p = 1e-9  # leaves every weight, by the lines of dropout
    dropped = encode(model, batch).hidden[-1]
    with torch.no_grad():
        expected = encode(model.eval(), batch).hidden[-1]
    assert torch.allclose(dropped, expected, atol=1e-5)


def test_losses_and_gradients_of_groups_equal_padded_ones():
    results = []
    for layout in ("packed", "padded"):
        teacher, layer_map = build("electra").electra, build_layer_map("uniform", 3, 3)
        torch.manual_seed(1)
        student = FAMILIES["bert"][0](copy.deepcopy(FAMILIES["bert"][1])).double().bert
        module = Distiller(student, teacher.config, layer_map, DistillWeights()).double().eval()
        batch = Collator(layout, 0)(samples(GROUPED))
        sums = module(batch, Teacher(teacher, layer_map)(batch))
        sum(sums.values()).backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        results.append(([*sums.values()], gradients))
    assert len(results[0][1]) > 30
    for packed, padded in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-10, atol=1e-10)
