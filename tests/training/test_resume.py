"""Stop and resume in one process: bits, rows of metrics, whose folder it is."""

import json
import re

import pytest
from command_lines import flags

from tinybert_dist.config import UserError, parse
from tinybert_dist.files import read_json, sha256_of
from tinybert_dist.stages import general_distill, task_distill

STEPS = 5


def general(workspace, output_dir, **changes):
    options = {
        "train_file_path": workspace / "corpus.txt",
        "teacher_model": workspace / "teacher",
        "student_model": workspace / "student.json",
        "output_dir": output_dir,
        "max_seq_len": 32,
        "train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "save_step": 2,
        "logging_steps": 1,
        "wandb_mode": "disabled",
    } | changes
    return general_distill.run(parse(general_distill.GeneralDistillConfig, flags(options)))


@pytest.fixture(scope="module")
def undisturbed(workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert general(workspace, folder)["outcome"] == "finished"
    return folder


def rows(folder):
    timing = ("throughput/",)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(timing)} for line in lines]


def test_stopping_after_every_step_gives_the_same_bits(workspace, undisturbed, tmp_path):
    """Dropout is on; every attempt stops at once by its time limit and the same command goes on."""
    folder, outcomes = tmp_path / "run", []
    for _ in range(STEPS):
        outcomes.append(general(workspace, folder, max_seconds=1e-6))
    assert [o["outcome"] for o in outcomes] == ["interrupted"] * (STEPS - 1) + ["finished"]
    assert [o["step"] for o in outcomes] == [1, 2, 3, 4, 5]
    for name in ("model.safetensors", "projections.safetensors"):
        assert sha256_of(folder / name) == sha256_of(undisturbed / name)
    assert rows(folder) == rows(undisturbed)


def test_dropout_is_on(undisturbed, workspace, tmp_path):
    """Guard of the test above: another seed gives other losses from the first step on."""
    general(workspace, tmp_path / "run", seed=7, max_steps=1)
    assert rows(tmp_path / "run")[0]["loss/total"] != rows(undisturbed)[0]["loss/total"]


def test_outputs(undisturbed):
    names = {p.name for p in undisturbed.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "metrics.jsonl",
        "config.yaml",
    } <= names
    assert {"outcome.json", "checkpoints", "projections.safetensors"} <= names
    keys = set(rows(undisturbed)[0])
    assert {
        "step",
        "loss/total",
        "loss/attention",
        "loss/hidden",
        "learning_rate",
        "grad_norm",
        "epoch",
    } <= keys
    assert {
        "loss/attention/layer_1",
        "loss/attention/layer_2",
        "loss/hidden/embeddings",
        "loss/hidden/layer_2",
    } <= keys
    assert [r["step"] for r in rows(undisturbed)] == list(range(1, STEPS + 1))
    checkpoints = sorted(p.name for p in (undisturbed / "checkpoints").iterdir())
    assert checkpoints == ["step-00000004", "step-00000005"]  # the newest two, the final step always


def test_a_finished_run_says_so(workspace, undisturbed, capsys):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*.safetensors")}
    assert general(workspace, undisturbed)["outcome"] == "finished"
    assert "already finished" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*.safetensors")}


def test_another_runs_folder_is_refused_with_both_values(workspace, undisturbed):
    with pytest.raises(UserError, match=r"learning_rate: 0\.001 there, 0\.01 now"):
        general(workspace, undisturbed, learning_rate=0.01)


def test_changed_data_are_refused(workspace, undisturbed, tmp_path):
    changed = tmp_path / "corpus.txt"
    changed.write_text((workspace / "corpus.txt").read_text() + "One more sentence.\n")
    with pytest.raises(UserError, match="train_file_path"):
        general(workspace, undisturbed, train_file_path=changed)


def test_a_strangers_folder_is_refused(workspace, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(UserError, match="not empty"):
        general(workspace, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "do not touch"


def test_dry_run_writes_no_run(workspace, tmp_path, capsys):
    assert general(workspace, tmp_path / "run", dry_run=True) == {"outcome": "dry_run"}
    output = capsys.readouterr().out
    assert "1:2,2:4" in output and re.search(r"loader alone +[\d.]+[kM] real tokens/s with one core", output)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.fixture(scope="module")
def predicted(workspace, undisturbed, tmp_path_factory):
    return predict_step(workspace, undisturbed, tmp_path_factory.mktemp("prediction") / "run")


def predict_step(workspace, student, folder, **changes):
    options = {
        "teacher_model": workspace / "teacher",
        "student_model": student,
        "data_dir": workspace / "task",
        "output_dir": folder,
        "max_seq_length": 32,
        "num_train_epochs": 3,
        "eval_step": 3,
        "learning_rate": 3e-3,
        "wandb_mode": "disabled",
    } | changes
    argv = ["--pred_distill", *flags(options)]
    outcome = task_distill.run(parse(task_distill.TaskDistillConfig, argv))
    return folder, outcome


def test_best_step_is_kept_and_survives_a_stop(workspace, undisturbed, predicted, tmp_path):
    folder, outcome = predicted
    evaluations = {r["step"]: r["eval/score"] for r in rows(folder) if "eval/score" in r}
    best_step = max(evaluations, key=lambda step: (evaluations[step], -step))
    assert outcome["result"]["step"] == best_step
    assert read_json(folder / "eval_results.json")["score"] == evaluations[best_step]
    best = folder / "checkpoints" / f"step-{best_step:08d}"
    assert best.is_dir()
    again = tmp_path / "again"
    last = {"outcome": ""}
    for _ in range(20):
        if last["outcome"] == "finished":
            break
        last = predict_step(workspace, undisturbed, again, max_seconds=0.1)[1]
    assert last == outcome
    assert sha256_of(again / "model.safetensors") == sha256_of(folder / "model.safetensors")


def test_every_row_of_the_dev_split_is_predicted_once(predicted):
    lines = (predicted[0] / "predictions.tsv").read_text().splitlines()
    assert len(lines) == 1 + 60
    assert len({line.split("\t")[0] for line in lines[1:]}) == 60
