"""Parameters a loss does not depend on are frozen: without a gradient, or with one that is rounding noise."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from tinybert_dist.data.batches import Collator
from tinybert_dist.data.tokens import Sample, Samples
from tinybert_dist.distill.layer_map import build_layer_map
from tinybert_dist.distill.modules import Classifier, Distiller, DistillWeights
from tinybert_dist.distill.teacher import Teacher

LAYERS = 3


def build(num_layers=LAYERS, hidden=16):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=hidden, num_hidden_layers=num_layers, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16, num_labels=2, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config).double()


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 50, (n,), generator=rng).numpy() for n in (7, 4, 9)]
    samples = [Sample(i, ids, len(ids), float(i % 2)) for i, ids in enumerate(rows)]
    return Collator("packed", 0)(Samples.of(samples))


def key_biases(layers):
    return {f"encoder.layer.{i}.attention.self.key.bias" for i in layers}


def short(names):
    return {name.removeprefix("model.").removeprefix("bert.") for name in names}


def gradients(module, sums):
    sum(sums.values()).backward()
    return {n: p.grad.norm().item() for n, p in module.named_parameters() if p.grad is not None}


def test_labels_do_not_see_key_biases(batch):
    module = Classifier(build(), regression=False)
    norms = gradients(module, module(batch))
    frozen, reached = module.freeze_unreached(module(batch))
    assert short(frozen) == key_biases(range(LAYERS))
    assert set(reached) == set(norms) - set(frozen)
    assert 0 < max(norms[name] for name in frozen) < 1e-15  # noise in float64
    assert min(norms[name] for name in reached) > 1e-8
    assert not any(p.requires_grad for n, p in module.named_parameters() if n in frozen)


def test_learned_scores_see_the_key_biases_of_their_layers(batch):
    """Layer 2 learns scores, hidden states are learned up to layer 3: only the key bias of 2 matters."""
    teacher, layer_map = build(hidden=32), build_layer_map("2:1,3:2", LAYERS, LAYERS)
    module = Distiller(build().bert, teacher.config, layer_map, DistillWeights())
    module.double()
    module.attention_pairs = module.attention_pairs[:1]
    module.score_layers = frozenset({2})
    module.term_weights.pop("attention/layer_3", None)
    sums = module(batch, Teacher(teacher, layer_map)(batch))
    norms = gradients(module, {k: v for k, v in sums.items() if k in module.term_weights})
    frozen, _ = module.freeze_unreached(module(batch, Teacher(teacher, layer_map)(batch)))
    biases = {name for name in short(frozen) if name.endswith("key.bias")}
    assert biases == key_biases({0, 2})
    assert norms["model.encoder.layer.1.attention.self.key.bias"] > 1e-8
    assert max(norms[f"model.{name}"] for name in biases) < 1e-13
