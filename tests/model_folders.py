"""Model folders: those of the original code, and small ones."""

import json

import torch
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig

from tinybert_dist import models

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CARD = models.model_card(title="t", stage="task_distill")
TEACHER = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
STUDENT = TEACHER | {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 48, "model_type": "bert"}


class UnknownConfig(RobertaConfig):
    """Of a family nobody knows, whose positions begin behind the padding id."""

    model_type = "of another family"


def write_tiny_pair(folder, tokenizer):
    """teacher/, a classifier of "no" and "yes" with random weights, and student.json."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
        problem_type="single_label_classification",
        **TEACHER,
    )
    models.save_model(
        BertForSequenceClassification(config), tokenizer, folder / "teacher", card="a random teacher\n"
    )
    (folder / "student.json").write_text(json.dumps(STUDENT))


def weights_of(reference, part):
    return {
        name.removeprefix(f"{part}/"): t for name, t in reference[0].items() if name.startswith(f"{part}/")
    }


def write_reference_folder(folder, state, config, name="pytorch_model.bin"):
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name)
    (folder / "config.json").write_text(
        json.dumps(config)
    )  # as theirs: no model_type, num_labels, pad_token_id
    words = [f"w{i}" for i in range(config["vocab_size"] - len(SPECIAL))]
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + words) + "\n")
    return folder


def tiny_tokenizer(tmp_path, words=("good", "bad", "a")):
    folder = tmp_path / "vocabulary"
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n")
    return models.load_tokenizer(folder)


def tiny_classifier(labels=("bad", "good")):
    config = BertConfig(
        vocab_size=8, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, id2label=dict(enumerate(labels)),
        label2id={n: i for i, n in enumerate(labels)}, problem_type="single_label_classification",
    )  # fmt: skip
    torch.manual_seed(0)
    return BertForSequenceClassification(config).eval()


def assert_reloads(folder, auto_class, original):
    model, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert models.weights_fingerprint(model) == models.weights_fingerprint(original)
    return model
