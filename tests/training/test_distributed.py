"""Real processes: one wandb run, every row evaluated once, signals to all of them at once."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import wandb_files
from command_lines import general_distillation

from tinybert_dist.files import read_json
from tinybert_dist.stages import evaluate

pytestmark = pytest.mark.dist
STEPS = 10
TWO_PROCESSES = "2 on cpu"
OPTIONS = {
    "max_seq_len": 32,
    "train_batch_size": 8,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "save_step": 1,
    "keep_checkpoints": 3,
    "logging_steps": 1,
    "wandb_mode": "offline",
    "run_group": "night",
}


def arguments(workspace, output_dir, **changes):
    return general_distillation(workspace, output_dir, **OPTIONS | changes)


@pytest.fixture(scope="module")
def two(workspace, launch, tmp_path_factory):
    """An undisturbed run of two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    result = launch("general_distill", *arguments(workspace, folder))
    assert TWO_PROCESSES in result.stdout
    return folder


def test_exactly_one_wandb_run_whatever_the_world_size(two):
    assert len(list((two / "wandb").glob("offline-run-*"))) == 1
    (path,) = wandb_files.run_files(two)
    (run,) = wandb_files.runs(path)
    assert (run.job_type, run.run_group) == ("general_distill", "night")
    assert [row["step"] for row in wandb_files.history(path)] == list(range(1, STEPS + 1))
    assert [
        r.artifact.name for r in wandb_files.records(path) if r.WhichOneof("record_type") == "artifact"
    ] == ["general_distill-run"]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_the_whole_process_group_saves(workspace, tmp_path, number):
    """Ctrl-C and Slurm reach the workers that fetch batches, too: they must outlive the save."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "tinybert_dist.stages.general_distill"]
    command += map(str, arguments(workspace, folder, max_steps=5000, num_workers=1))
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "step-00000002").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    assert psutil.Process(process.pid).children()  # the worker
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-2000:]
    assert read_json(folder / "outcome.json")["outcome"] == "interrupted"


def test_two_processes_write_the_same_predictions_as_one(workspace, launch, tmp_path):
    """61 rows over two processes: none twice, none missing, the same scores."""
    task = tmp_path / "task"
    task.mkdir()
    rows = (workspace / "task" / "train.tsv").read_text().splitlines()[: 1 + 61]
    (task / "dev.tsv").write_text("\n".join(rows) + "\n")
    common = [
        "--model",
        workspace / "teacher",
        "--data_dir",
        task,
        "--max_seq_length",
        32,
        "--labels",
        "no",
        "yes",
    ]
    common += ["--eval_batch_size", 4]
    launch("evaluate", *common, "--output_dir", tmp_path / "two")
    evaluate.main([*map(str, common), "--output_dir", str(tmp_path / "one")])
    one, two = (read_json(tmp_path / name / "eval_results.json")["splits"]["dev"] for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-6) and one["num_examples"] == 61
    lines = {name: (tmp_path / name / "predictions.tsv").read_text().splitlines() for name in ("one", "two")}
    assert [x.split("\t")[:3] for x in lines["one"]] == [x.split("\t")[:3] for x in lines["two"]]
    assert len(lines["two"]) == 62
