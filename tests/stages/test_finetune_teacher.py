"""Fine-tuning a teacher, from a model or from nothing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from stage_runs import finetune, losses, predictions, rows, score
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from tinybert_dist.config import UserError, parse
from tinybert_dist.files import read_json
from tinybert_dist.stages import finetune_teacher
from tinybert_dist.training.scoring import Scorer


@pytest.fixture(scope="module")
def tuned(workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    outcome = finetune(workspace, folder, max_steps=30, train_batch_size=32, learning_rate=2e-3, eval_step=10)
    assert outcome["outcome"] == "finished"
    return folder


def test_the_folder_is_a_whole_transformers_model(tuned, workspace):
    model, info = AutoModelForSequenceClassification.from_pretrained(tuned, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert pipeline("text-classification", model=str(tuned))("the value")[0]["label"] in {"no", "yes"}
    names = {path.name for path in tuned.iterdir()}
    assert {
        *("config.json", "model.safetensors", "tokenizer.json", "README.md", "metrics.jsonl", "config.yaml"),
        *("eval_results.json", "eval_results.txt", "predictions.tsv", "outcome.json", "checkpoints"),
    } <= names
    assert str(workspace) not in (tuned / "README.md").read_text()


def test_it_learns_and_its_best_step_is_what_is_saved(tuned, workspace, tmp_path):
    terms = [row["loss/label"] for row in losses(tuned)]
    assert sum(terms[-5:]) < 0.95 * sum(terms[:5])
    evaluated = {row["step"]: row["eval/score"] for row in rows(tuned) if "eval/score" in row}
    assert sorted(evaluated) == [10, 20, 30]
    assert read_json(tuned / "eval_results.json")["score"] == max(evaluated.values())
    result = score(workspace, tmp_path / "again", student_model=tuned)
    assert result["score"] == max(evaluated.values())
    assert predictions(tmp_path / "again") == predictions(tuned)


def test_the_best_step_is_saved_and_not_the_last(workspace, tmp_path, monkeypatch):
    """Whatever the data say: the second of three evaluations is made the best."""
    scores, original = iter([0.1, 0.9, 0.3]), Scorer.scores
    monkeypatch.setattr(
        Scorer, "scores", lambda self, logits: original(self, logits) | {"score": next(scores)}
    )
    outcome = finetune(workspace, tmp_path / "run", max_steps=3, eval_step=1, keep_checkpoints=1)
    assert (
        outcome["result"]["step"] == 2 and read_json(tmp_path / "run" / "eval_results.json")["score"] == 0.9
    )
    checkpoints = {
        step: load_file(tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
        for step in (2, 3)  # the best is kept beside the newest
    }
    saved, name = load_file(tmp_path / "run" / "model.safetensors"), "classifier.weight"
    assert torch.equal(saved[name], checkpoints[2][f"model.{name}"])
    assert not torch.equal(saved[name], checkpoints[3][f"model.{name}"])


@pytest.mark.parametrize(
    "changes", [{"layout": "padded"}, {"gradient_accumulation_steps": 4}, {"micro_batch_tokens": 40}], ids=str
)
def test_how_a_step_is_computed_does_not_change_it(workspace, tmp_path, changes):
    model = tmp_path / "quiet"
    shutil.copytree(workspace / "teacher", model)
    config = read_json(model / "config.json")
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config | off))
    finetune(workspace, tmp_path / "one", teacher_model=model, max_steps=3)
    finetune(workspace, tmp_path / "two", teacher_model=model, max_steps=3, **changes)
    for ours, theirs in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_rows_are_tokenised_once_and_unlabelled_text_is_none_of_them(workspace, tmp_path, capsys, caplog):
    options = {"unlabelled_file_path": workspace / "corpus.txt"}
    assert finetune(workspace, tmp_path / "run", max_seconds=1e-6, **options)["outcome"] == "interrupted"
    assert "160 rows tokenised now" in capsys.readouterr().out
    assert "--unlabelled_file_path has no effect: a teacher learns from labels" in caplog.text
    assert finetune(workspace, tmp_path / "run", **options)["outcome"] == "finished"
    assert "all rows tokenised before" in capsys.readouterr().out


# --- from nothing -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scratch(workspace, tmp_path_factory):
    """(folder, options) of a model pretrained for 30 steps, then fine-tuned for 2."""
    folder = tmp_path_factory.mktemp("scratch")
    config = json.loads((workspace / "student.json").read_text())
    (folder / "new.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.0}))
    options = {
        "teacher_model": None,
        "from_scratch": folder / "new.json",
        "tokenizer": workspace / "vocab",
        "pretrain_file_path": workspace / "corpus.txt",
        "pretrain_steps": 30,
        "pretrain_batch_size": 32,
        "pretrain_learning_rate": 1e-2,
    }
    assert finetune(workspace, folder / "run", **options)["outcome"] == "finished"
    return folder / "run", options


def test_pretraining_leaves_a_masked_language_model(scratch, workspace):
    folder = scratch[0] / "pretrained"
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    with torch.no_grad():
        assert model(**tokenizer("the [MASK] is", return_tensors="pt")).logits.isfinite().all()
    card = (folder / "README.md").read_text()
    assert "AutoModelForMaskedLM" in card and "text-classification" not in card
    assert str(workspace) not in card


def test_the_loss_of_pretraining_goes_down(scratch):
    terms = [row["loss/masked_lm"] for row in losses(scratch[0] / "pretrained")]
    assert len(terms) == 30
    assert 4 < terms[0] < 7, "at most near log(500) for 500 pieces"
    assert sum(terms[-10:]) / 10 < sum(terms[:3]) / 3 - 0.1


def test_fine_tuning_starts_from_the_pretrained_weights(scratch):
    pretrained = load_file(scratch[0] / "pretrained" / "model.safetensors")
    tuned = load_file(scratch[0] / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    assert float((tuned[name] - pretrained[name]).abs().max()) < 5e-3  # two steps of 1e-3
    assert tuned["classifier.weight"].shape == (2, 24)


def test_a_rerun_reuses_finished_pretraining(scratch, workspace, capsys):
    folder, options = scratch
    (folder / "outcome.json").unlink()  # as if stopped right after pretraining
    written_at = (folder / "pretrained" / "model.safetensors").stat().st_mtime_ns
    assert finetune(workspace, folder, **options)["outcome"] == "finished"
    output = capsys.readouterr().out
    assert "pretrain: " in output and "already finished" in output
    assert (folder / "pretrained" / "model.safetensors").stat().st_mtime_ns == written_at


def test_interrupted_pretraining_is_resumed(workspace, scratch, tmp_path):
    """Three attempts, each stopped at once, then one to the end: the same losses as without a stop."""
    folder, options = scratch
    outcomes = [finetune(workspace, tmp_path / "run", max_seconds=1e-6, **options) for _ in range(2)]
    assert [(o["outcome"], o["step"]) for o in outcomes] == [("interrupted", 1), ("interrupted", 2)]
    assert finetune(workspace, tmp_path / "run", **options)["outcome"] == "finished"
    assert losses(tmp_path / "run" / "pretrained") == losses(folder / "pretrained")
    assert losses(tmp_path / "run") == losses(folder)


def test_from_scratch_without_pretraining(workspace, tmp_path):
    options = {"teacher_model": None, "from_scratch": workspace / "student.json"}
    outcome = finetune(workspace, tmp_path / "run", tokenizer=workspace / "vocab", **options)
    assert outcome["outcome"] == "finished"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "no", 1: "yes"} and model.config.hidden_size == 24


# --- the reference's folders --------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "pair"), [("teacher", "trained"), ("general", "new")])
def test_reference_folders(reference_folders, tmp_path, model, pair):
    """A task checkpoint goes on from its head, a general one (step_N files) gets a new one."""
    options = {"teacher_model": reference_folders / model, "data_dir": reference_folders / "task"}
    options |= {"labels": ["short", "middle", "long"], "max_seq_length": 24, "learning_rate": 1e-9}
    outcome = finetune(reference_folders, tmp_path / "run", **options)
    assert outcome["outcome"] == "finished"
    loaded, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "run", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert list(loaded.config.id2label.values()) == ["short", "middle", "long"]
    file = "pytorch_model.bin" if model == "teacher" else "step_20_pytorch_model.bin"
    start = torch.load(reference_folders / model / file, weights_only=True)
    name = "bert.encoder.layer.1.output.dense.weight"
    assert torch.allclose(loaded.state_dict()[name], start[name], atol=1e-6)
    if pair == "trained":
        assert torch.allclose(loaded.classifier.weight, start["classifier.weight"], atol=1e-6)


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_model": None}, "either --teacher_model .* or --from_scratch"),
        ({"from_scratch": "x.json"}, "either --teacher_model .* or --from_scratch"),
        ({"teacher_model": None, "from_scratch": "x.json"}, "--from_scratch needs --tokenizer"),
        ({"pretrain_file_path": "x.txt"}, "--pretrain_file_path is for --from_scratch"),
    ],
)
def test_options_that_contradict(workspace, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        finetune(workspace, tmp_path / "run", **changes)


def test_model_with_its_labels_in_another_order(workspace, tmp_path):
    model = tmp_path / "reverse"
    shutil.copytree(workspace / "teacher", model)
    config = read_json(model / "config.json")
    names = {"id2label": {"0": "yes", "1": "no"}, "label2id": {"yes": 0, "no": 1}}
    (model / "config.json").write_text(json.dumps(config | names))
    with pytest.raises(UserError, match=r"labels stand in another order.*--labels in the model's order"):
        finetune(workspace, tmp_path / "run", teacher_model=model)
    # the remedies the message names
    finetune(workspace, tmp_path / "one", teacher_model=model, labels=["yes", "no"])
    assert read_json(tmp_path / "one" / "config.json")["id2label"] == {"0": "yes", "1": "no"}
    finetune(workspace, tmp_path / "two", teacher_model=model, replace_head=True)
    assert read_json(tmp_path / "two" / "config.json")["id2label"] == {"0": "no", "1": "yes"}


def test_model_of_another_task(workspace, tmp_path):
    data = tmp_path / "task"
    data.mkdir()
    for name in ("train", "dev"):
        (data / f"{name}.tsv").write_text("sentence\tlabel\n" + "a b\tx\nc d\ty\ne f\tz\n" * 4)
    with pytest.raises(UserError, match="classifier has 2 outputs, the task needs 3"):
        finetune(workspace, tmp_path / "run", data_dir=data)
    assert finetune(workspace, tmp_path / "new", data_dir=data, replace_head=True)["outcome"] == "finished"


def test_vocabulary_larger_than_the_embedding_table(workspace, reference_folders, tmp_path):
    with pytest.raises(UserError, match=r"has 200 embeddings, the tokenizer a vocabulary of 5\d\d entries"):
        options = {"teacher_model": reference_folders / "general", "tokenizer": workspace / "vocab"}
        finetune(workspace, tmp_path / "run", **options)


def test_sequences_longer_than_the_position_table(workspace, tmp_path):
    with pytest.raises(UserError, match="--max_seq_length 65 is over the 64 positions"):
        finetune(workspace, tmp_path / "run", max_seq_length=65)


def test_a_strangers_folder_stays_as_it_was(workspace, scratch, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(UserError, match="not empty"):
        finetune(workspace, tmp_path, **scratch[1])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_options_default_to_a_linear_schedule():
    config = parse(
        finetune_teacher.FinetuneTeacherConfig,
        ["--teacher_model", "t", "--data_dir", "d", "--output_dir", "o"],
    )
    assert (config.lr_schedule, config.warmup_proportion) == ("linear", 0.1)
