"""The exported folder: what is in it, that others can use it, and that its figures are true."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from export_runs import content, logits_of, run_evaluate, run_export, session, with_head
from model_folders import assert_reloads
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tinybert_dist.export.onnx_files import metadata_of
from tinybert_dist.files import read_json
from tinybert_dist.models import load_classifier

FILES = {"onnx": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}


def dev_rows(folder):
    rows = [line.split("\t") for line in (folder / "task" / "dev.tsv").read_text().splitlines()[1:]]
    return [row[0] for row in rows], [row[1] for row in rows]


def test_the_folder_holds_the_model_and_nothing_of_its_training(exported):
    folder, record = exported
    names = set(content(folder))
    assert names == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"),
        *("export.json", "lineage.json", *FILES.values()),
    }
    assert record == read_json(folder / "export.json")
    assert list(record["formats"]) == ["transformers", "onnx", "int8"]
    for entry in record["formats"].values():
        assert entry["size_mb"] == round((folder / entry["file"]).stat().st_size / 1e6, 3)
        assert [(p["length_tokens"], p["batch_size"]) for p in entry["speed"]] == [
            (8, 1), (8, 4), (16, 1), (16, 4),
        ]  # fmt: skip
        assert all(0 < p["latency_ms"]["p50"] <= p["latency_ms"]["p95"] for p in entry["speed"])


def test_projections_and_checkpoints_stay_behind(workspace, tmp_path):
    source = tmp_path / "run"
    with_head(workspace / "teacher", source, torch.ones(2, 48), torch.zeros(2))
    for name in ("projections.safetensors", "optimizer.safetensors", "metrics.jsonl"):
        (source / name).write_bytes(b"{}")
    (source / "checkpoints").mkdir()
    run_export(workspace, tmp_path / "out", model=source, data_dir=None, formats=["transformers"])
    assert set(content(tmp_path / "out")) == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"),
        *("export.json", "lineage.json"),
    }


def test_transformers_and_evaluate_take_the_folder(exported, workspace, tmp_path):
    folder, record = exported
    assert_reloads(folder, AutoModelForSequenceClassification, load_classifier(workspace / "teacher"))
    said = pipeline("text-classification", model=str(folder))("The first text.")
    assert said[0]["label"] in ("no", "yes")
    result = run_evaluate(workspace, tmp_path / "eval", model=folder)
    ours = record["formats"]["transformers"]
    assert ours["score"] == result["score"]
    assert ours["splits"]["dev"]["loss"] == pytest.approx(result["dev/loss"], rel=1e-6)


@pytest.mark.parametrize("name", ["onnx", "int8"])
def test_scores_are_those_of_the_file_on_the_raw_texts(exported, workspace, name):
    """Tokenised by transformers, computed by onnxruntime: none of the code that made the record."""
    folder, record = exported
    texts, labels = dev_rows(workspace)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="np")
    names = metadata_of(folder / FILES[name])["labels"]
    logits = logits_of(folder / FILES[name], inputs)
    right = [names[i] == label for i, label in zip(logits.argmax(1), labels, strict=True)]
    entry = record["formats"][name]
    assert entry["score"] == pytest.approx(np.mean(right), abs=0 if name == "onnx" else 1 / 60)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = model(**{key: torch.from_numpy(value) for key, value in inputs.items()}).logits.numpy()
    same = float((logits.argmax(1) == theirs.argmax(1)).mean())
    assert entry["agreement"] == pytest.approx(same, abs=0 if name == "onnx" else 1 / 60)
    assert np.abs(logits - theirs).max() < (1e-5 if name == "onnx" else 0.05)


def test_int8_is_quantised_and_small(exported):
    folder, record = exported
    import onnx

    kinds = [node.op_type for node in onnx.load(folder / FILES["int8"]).graph.node]
    # 4 layers of 6 matrices, pooler and classifier
    assert kinds.count("MatMulInteger") == 4 * 6 + 2
    sizes = {name: entry["size_mb"] for name, entry in record["formats"].items()}
    assert sizes["int8"] < 0.5 * sizes["onnx"]
    assert 1e-5 < record["formats"]["int8"]["largest_logit_difference"] < 0.05
    assert record["formats"]["onnx"]["largest_logit_difference"] < 1e-5


@pytest.mark.parametrize("name", ["onnx", "int8"])
def test_files_say_what_they_are(exported, name):
    folder, _ = exported
    assert metadata_of(folder / FILES[name]) == {
        "labels": ["no", "yes"],
        "problem_type": "single_label_classification",
        "max_length": 32,
        "lower_case": True,
    }
    shapes = {entry.name: entry.shape for entry in session(folder / FILES[name]).get_inputs()}
    assert list(shapes) == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(shape == ["batch", "sequence"] for shape in shapes.values())


def test_usage_on_the_card_runs_as_it_stands(exported):
    folder, _ = exported
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    (code,) = [block for block in blocks if "onnxruntime" in block]
    assert "onnx/model_int8.onnx" in code and "max_length=32" in code
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(re.search(r" (no|yes) \[", line) for line in lines)


def test_card_has_scores_sizes_and_speed_of_every_format(exported):
    folder, record = exported
    card = (folder / "README.md").read_text()
    for name, file in FILES.items():
        entry = record["formats"][name]
        assert f"| `{file}` | {entry['size_mb']:.2f} | {entry['score']:.4f} |" in card
    assert "accuracy (dev)" in card and "1 x 8, ms (p50 / p95)" in card and "4 x 16, texts per second" in card


def test_nothing_written_names_a_place_of_this_machine(exported, workspace):
    """The exporter notes the source files of every operator."""
    folder, _ = exported
    places = [str(workspace), str(folder.parent), "site-packages", "stack_trace"]
    hits = [
        (name, place) for name, data in content(folder).items() for place in places if place.encode() in data
    ]
    assert hits == []


def test_two_texts_keep_their_segments(workspace, sentences, tmp_path):
    data = tmp_path / "task"
    data.mkdir()
    rows = [f"{a}\t{b}\t{len(a) % 2}" for a, b in zip(sentences[:24], sentences[24:48], strict=True)]
    for split in ("train", "dev"):
        (data / f"{split}.tsv").write_text("sentence1\tsentence2\tlabel\n" + "\n".join(rows) + "\n")
    state = load_file(workspace / "teacher" / "model.safetensors")
    names = {"id2label": {"0": "0", "1": "1"}, "label2id": {"0": 0, "1": 1}}
    weight, bias = 40 * state["classifier.weight"], torch.zeros(2)  # far from even
    model = with_head(workspace / "teacher", tmp_path / "model", weight, bias, **names)
    record = run_export(workspace, tmp_path / "out", model=model, data_dir=data, formats=["onnx"])
    result = run_evaluate(workspace, tmp_path / "eval", model=model, data_dir=data)
    for name in ("transformers", "onnx"):
        loss = record["formats"][name]["splits"]["dev"]["loss"]
        assert loss == pytest.approx(result["dev/loss"], rel=1e-5)


def test_labels_are_mapped_by_name(exported, workspace, tmp_path):
    """A model with its classes in the other order scores the same, in every format."""
    state = load_file(workspace / "teacher" / "model.safetensors")
    weight, bias = state["classifier.weight"].flip(0), state["classifier.bias"].flip(0).contiguous()
    names = {"id2label": {"0": "yes", "1": "no"}, "label2id": {"yes": 0, "no": 1}}
    model = with_head(workspace / "teacher", tmp_path / "reverse", weight, bias, **names)
    record = run_export(workspace, tmp_path / "out", model=model, formats=["onnx"])
    assert record["labels"] == ["yes", "no"]
    for name in ("transformers", "onnx"):
        ours, theirs = record["formats"][name], exported[1]["formats"][name]
        assert ours["score"] == theirs["score"]
        assert ours["splits"]["dev"]["loss"] == pytest.approx(theirs["splits"]["dev"]["loss"], rel=1e-6)


def test_a_regression_keeps_its_value(workspace, sentences, tmp_path):
    data = tmp_path / "task"
    data.mkdir()
    rows = [f"{text}\t{len(text) / 40:.2f}" for text in sentences[:30]]
    for split in ("train", "dev"):
        (data / f"{split}.tsv").write_text("sentence\tscore\n" + "\n".join(rows) + "\n")
    weight = load_file(workspace / "teacher" / "model.safetensors")["classifier.weight"][:1]
    kinds = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
    model = with_head(workspace / "teacher", tmp_path / "model", weight, torch.zeros(1), **kinds)
    options = {"task_mode": "regression", "label_column": "score", "data_dir": data, "model": model}
    record = run_export(workspace, tmp_path / "out", formats=["onnx"], **options)
    assert record["problem_type"] == "regression" and "agreement" not in record["formats"]["onnx"]
    result = run_evaluate(workspace, tmp_path / "eval", **options)
    assert record["formats"]["onnx"]["score"] == pytest.approx(result["score"], abs=1e-4)
    unscored = run_export(workspace, tmp_path / "bare", model=model, data_dir=None, formats=["transformers"])
    assert unscored["problem_type"] == "regression" and unscored["labels"] is None


def test_without_data_logits_are_compared_and_it_says_so(workspace, tmp_path, capsys):
    record = run_export(workspace, tmp_path / "out", data_dir=None, formats=["int8"])
    assert list(record["formats"]) == ["transformers", "int8"]
    assert not (tmp_path / "out" / FILES["onnx"]).exists()
    assert not any("score" in entry for entry in record["formats"].values())
    assert "not scored" in capsys.readouterr().out
    assert "were not scored" in (tmp_path / "out" / "README.md").read_text()


def test_a_split_without_labels_is_not_scored(workspace, sentences, tmp_path):
    data = tmp_path / "SST-2"
    data.mkdir()
    rows = "\n".join(f"{text}\t{i % 2}" for i, text in enumerate(sentences[:8]))
    (data / "train.tsv").write_text(f"sentence\tlabel\n{rows}\n")
    tests = "\n".join(f"{i}\t{text}" for i, text in enumerate(sentences[8:16]))
    (data / "test.tsv").write_text(f"index\tsentence\n{tests}\n")
    weight = load_file(workspace / "teacher" / "model.safetensors")["classifier.weight"]
    names = {"id2label": {"0": "0", "1": "1"}, "label2id": {"0": 0, "1": 1}}
    model = with_head(workspace / "teacher", tmp_path / "model", weight, torch.zeros(2), **names)
    options = {"model": model, "data_dir": data, "task_name": "sst2", "splits": ["test"]}
    record = run_export(workspace, tmp_path / "out", formats=["transformers"], **options)
    assert "metric" not in record and "score" not in record["formats"]["transformers"]
