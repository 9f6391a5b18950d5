"""Whoever gets the signal, however often and whenever: saved, interrupted, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from jobs import FAULTY, TWO_PROCESSES, Job, arguments, outcome

from tinybert_dist.training.checkpoint import Checkpoints

pytestmark = pytest.mark.dist
GONE_S = 15


def check_interrupted(job, *, world=TWO_PROCESSES):
    """The job ended by itself as interrupted, and its newest checkpoint is where it stopped."""
    seconds, output = job.end()
    print(f"signal -> all gone: {seconds:.1f} s")
    record = outcome(job.folder)
    assert (record["outcome"], record["resumable"]) == ("interrupted", True), output[-3000:]
    assert Checkpoints(job.folder / "checkpoints", 2).newest().step == record["step"]
    assert seconds < GONE_S and world in output
    return record


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGUSR1, "launcher is gone"),  # it dies at once, without a word to its workers
        pytest.param(signal.SIGKILL, "launcher is gone", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "SIGTERM", marks=pytest.mark.slow),  # passed on
    ],
)
def test_a_signal_to_the_launcher(start, number, reason):
    job = start().wait_for_checkpoint()
    job.process.send_signal(number)
    assert reason in check_interrupted(job)["reason"]
    assert job.process.returncode != 0


@pytest.mark.parametrize(
    ("number", "rank"),
    [(signal.SIGUSR1, 1), pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow)],
)
def test_a_signal_to_one_process_again_and_again(start, number, rank):
    job, times = start().wait_for_checkpoint(), 0
    while outcome(job.folder)["outcome"] == "running" and times < 1000:
        os.kill(job.pid(rank), number)
        times += 1
        time.sleep(0.01)
    assert times > 1
    check_interrupted(job)
    assert job.process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGUSR1,)])
def test_signals_to_the_launcher_during_a_save(start, numbers):
    """Of the second SIGTERM the launcher dies, its workers do not."""
    job = start("slow_save 0 20").wait_for_checkpoint()
    job.wait_for(lambda: '"phase": "save"' in (job.folder / "heartbeats" / "rank-00000.json").read_text())
    for number in numbers:
        job.process.send_signal(number)
        time.sleep(0.3)
    assert not (job.folder / "checkpoints" / "step-00000020").exists()  # it was during the save
    record = check_interrupted(job)
    assert record["step"] >= 20


def test_a_launcher_of_one_process_leaves_no_orphan(workspace, launch, tmp_path):
    """It passes no signal on."""
    folder = tmp_path / "run"
    job = Job(launch(FAULTY, *arguments(workspace, folder), num_processes=1, wait=False), folder)
    job.wait_for_checkpoint()
    worker = psutil.Process(job.pid(0))
    assert worker.pid != job.process.pid
    job.process.send_signal(signal.SIGTERM)
    assert "launcher is gone" in check_interrupted(job, world="1 on cpu")["reason"]


def test_a_pipeline_passes_the_signal_on_and_waits(workspace, tmp_path):
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    flags = arguments(workspace, folder)
    options = dict(zip((f.removeprefix("--") for f in flags[::2]), flags[1::2], strict=True))
    lines = [f"      {name}: {value}" for name, value in options.items()]
    recipe.write_text(
        "stages:\n  - name: student\n    stage: general_distill\n    args:\n" + "\n".join(lines) + "\n"
    )
    config = Path(__file__).parents[2] / "accelerate_configs" / "cpu_2_processes.yaml"
    launcher = f"{sys.executable} -m accelerate.commands.launch --config_file {config}"
    command = [sys.executable, "-m", "tinybert_dist.stages.pipeline", str(recipe), "--launcher", launcher]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    job = Job(process, folder).wait_for_checkpoint()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and TWO_PROCESSES in output
    assert "stage student was interrupted" in output
    # by the time the pipeline ends, the save is done
    assert outcome(folder)["outcome"] == "interrupted" and "SIGTERM" in outcome(folder)["reason"]
    job.kill()
