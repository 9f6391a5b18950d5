"""Two real processes through `accelerate launch`: same numbers as one, stopped and resumed, nothing twice."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tinybert_dist.files import read_json
from tinybert_dist.stages import evaluate

pytestmark = pytest.mark.dist
STEPS = 60
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
}


def arguments(workspace, output_dir, **changes):
    options = {
        "train_file_path": workspace / "corpus.txt",
        "teacher_model": workspace / "teacher",
        "student_model": workspace / "student.json",
        "output_dir": output_dir,
        **OPTIONS,
        **changes,
    }
    return [x for name, value in options.items() for x in (f"--{name}", value)]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two(workspace, launch, tmp_path_factory):
    """An undisturbed run of two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    result = launch("general_distill", *arguments(workspace, folder))
    assert TWO_PROCESSES in result.stdout
    return folder


def test_two_processes_equal_one_with_the_same_split(workspace, launch, two, tmp_path):
    one = tmp_path / "one"
    launch("general_distill", *arguments(workspace, one, gradient_accumulation_steps=2), num_processes=1)
    for ours, theirs in zip(metrics(one), metrics(two), strict=True):
        for key in ("loss/total", "loss/attention", "loss/hidden", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-6), (ours["step"], key)


def test_exactly_one_wandb_run_whatever_the_world_size(two):
    assert len(list((two / "wandb").glob("offline-run-*"))) == 1


def test_sigterm_saves_and_another_world_size_goes_on(workspace, launch, two, tmp_path):
    """The cut into micro-batches is a constant of the run: one process continues what two began."""
    folder = tmp_path / "run"
    process = launch("general_distill", *arguments(workspace, folder), wait=False)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "step-00000002").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)  # the launcher passes it on
    output, _ = process.communicate(timeout=120)
    outcome = read_json(folder / "outcome.json")
    assert outcome["outcome"] == "interrupted", output[-2000:]
    assert outcome["step"] < STEPS and "SIGTERM" in outcome["reason"]
    result = launch("general_distill", *arguments(workspace, folder), num_processes=1)
    assert "1 on cpu" in result.stdout and f"from step {outcome['step']}" in result.stdout
    for ours, theirs in zip(metrics(folder), metrics(two), strict=True):
        assert ours["loss/total"] == pytest.approx(theirs["loss/total"], rel=1e-6), ours["step"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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


def test_a_student_called_past_its_wrapper_is_caught(workspace, launch, tmp_path):
    """The original's fault: gradients never met. The checksum names it after the first step."""
    script = tmp_path / "bypass.py"
    script.write_text(
        "import sys\n"
        "from tinybert_dist.stages import general_distill\n"
        "from tinybert_dist.training import loop\n"
        "prepare = loop.TrainingLoop.__init__\n"
        "def bypass(self, *a):\n"
        "    prepare(self, *a)\n"
        "    self.trained.wrapped = self.job.module\n"
        "    self.accelerator.no_sync = lambda m: __import__('contextlib').nullcontext()\n"
        "loop.TrainingLoop.__init__ = bypass\n"
        "general_distill.main(sys.argv[1:])\n"
    )
    from pathlib import Path

    config = Path(__file__).resolve().parents[2] / "accelerate_configs" / "cpu_2_processes.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), str(script)]
    command += map(str, arguments(workspace, tmp_path / "run", wandb_mode="disabled"))
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode != 0
    assert "differs from process 0" in result.stderr and "called through the wrapper" in result.stderr
    assert read_json(tmp_path / "run" / "outcome.json")["outcome"] == "failed"
