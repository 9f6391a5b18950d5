"""Every architecture whose classifier transformers has: the same logits, whatever the batch."""

import numpy as np
import pytest
import torch
from export_runs import run_export, session
from transformers import AutoConfig, AutoModelForSequenceClassification

from tinybert_dist.config import StageFailed
from tinybert_dist.export import formats
from tinybert_dist.models import load_tokenizer, save_model

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
FAMILIES = {
    "bert": SIZES | {"max_position_embeddings": 40},
    # positions start behind the padding id, one kind of segment
    "roberta": SIZES | {"max_position_embeddings": 41, "pad_token_id": 0, "type_vocab_size": 1},
    # embeddings are narrower than the layers
    "electra": SIZES | {"max_position_embeddings": 40, "embedding_size": 16},
    # no segments at all
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40},
}
MAX_LENGTH = 40


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_gives_the_logits_of_transformers_on_ragged_batches(workspace, tmp_path, family):
    tokenizer = load_tokenizer(workspace / "vocab")
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), num_labels=3, **FAMILIES[family])
    original = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.mul_(3)  # freshly drawn ones score every text nearly alike
    save_model(original, tokenizer, tmp_path / "model", card="")
    options = {
        "model": tmp_path / "model",
        "data_dir": None,
        "max_seq_length": MAX_LENGTH,
        "formats": ["onnx"],
    }
    record = run_export(workspace, tmp_path / "out", **options)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    opened = session(tmp_path / "out" / "onnx" / "model.onnx")
    names = [entry.name for entry in opened.get_inputs()]
    segments = family in ("bert", "electra")
    assert names == ["input_ids", "attention_mask", *(["token_type_ids"] if segments else [])]
    differences, spread = [], []
    generator = torch.Generator().manual_seed(1)
    for lengths in ([1], [2], [MAX_LENGTH], [7, 1, MAX_LENGTH, 23, 3], [5, 5, 5]):
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(1, len(tokenizer), mask.shape, generator=generator) * mask
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask.cumsum(1) % 2}
        given = {name: given[name] for name in names}
        with torch.no_grad():
            expected = model(**given).logits.numpy()
        logits = opened.run(["logits"], {name: tensor.numpy() for name, tensor in given.items()})[0]
        assert logits.dtype == np.float32 and logits.shape == (len(lengths), 3)
        differences.append(np.abs(logits - expected).max())
        spread.append(expected)
    assert np.ptp(np.concatenate(spread), axis=0).min() > 0.1, "all texts score alike: nothing is compared"
    assert max(differences) < 1e-5
    assert record["formats"]["onnx"]["largest_logit_difference"] < 1e-5


def test_padding_and_neighbours_do_not_change_a_text(exported):
    folder, _ = exported
    opened = session(folder / "onnx" / "model.onnx")
    alone = np.array([[2, 30, 31, 3]])
    both = np.array([[2, 30, 31, 3, 0, 0, 0, 0, 0], [2, 60, 61, 62, 63, 64, 65, 66, 3]])

    def logits(ids):
        mask = (ids != 0).astype(np.int64)
        return opened.run(
            None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        )

    assert logits(both)[0][0] == pytest.approx(logits(alone)[0][0], abs=1e-6)


def test_a_file_that_differs_is_not_written(workspace):
    tokenizer = load_tokenizer(workspace / "vocab")

    def right(ids, mask, segments):
        return np.stack([(ids * mask).sum(1).numpy() / 1e4, mask.sum(1).numpy()], axis=1)

    def forgets_the_mask(ids, mask, segments):
        return right(ids + 1, torch.ones_like(mask), segments)

    both = {"transformers": right, "onnx": right, "int8": forgets_the_mask}
    result = formats.compare(both, tokenizer, 32)
    assert result["onnx"]["largest_logit_difference"] == 0 < result["int8"]["largest_logit_difference"]
    with pytest.raises(StageFailed, match=r"away from the model's own.*--formats transformers"):
        formats.compare(both | {"onnx": forgets_the_mask}, tokenizer, 32)


def test_made_up_batches_are_ragged_and_within_the_vocabulary():
    batches = list(formats.ragged_batches(50, 7, 32))
    shapes = [tuple(ids.shape) for ids, _, _ in batches]
    assert (1, 1) in shapes and (1, 32) in shapes and any(rows > 1 for rows, _ in shapes)
    assert any(0 < mask.float().mean() < 1 for _, mask, _ in batches)
    assert any(segments.any() for _, _, segments in batches)
    for ids, mask, segments in batches:
        assert 0 <= ids.min() and ids.max() < 50
        assert (ids[mask == 0] == 7).all() and not segments[mask == 0].any()
