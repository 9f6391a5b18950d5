"""A process that dies, hangs, is stopped or computes NaN: named, everything gone, the run resumable."""

import os
import re
import signal

import psutil
import pytest
from jobs import FAULTY, TWO_PROCESSES, outcome, resume

from tinybert_dist.files import sha256_of
from tinybert_dist.training.checkpoint import Checkpoints

pytestmark = pytest.mark.dist
HANG_TIMEOUT_S = 4
SHARDED = ("fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")


def test_a_killed_process_is_named_and_the_same_command_goes_on(start):
    job = start().wait_for_checkpoint()
    psutil.Process(job.pid(1)).kill()
    seconds, output = job.end()
    print(f"killed -> all gone: {seconds:.1f} s")
    assert seconds <= 10 and job.process.returncode != 0 and TWO_PROCESSES in output
    record = outcome(job.folder)
    assert (record["outcome"], record["resumable"], record["first_failing_process"]) == ("failed", True, 1)
    assert "process 1 died" in record["reason"]  # the launcher may end the other before it has printed it
    assert resume(start) >= 10


@pytest.mark.parametrize(
    ("fault", "culprit", "phase", "config"),
    [
        ("hang 1 12", 1, "fetch of step 12", ""),
        pytest.param("hang 0 12", 0, "fetch of step 12", "", marks=pytest.mark.slow),
        pytest.param("hold_interpreter 1 12", 1, "fetch of step 12", "", marks=pytest.mark.slow),
        pytest.param("hang_in_save 0 20", 0, "save of step 20", "", marks=pytest.mark.slow),
        # the other process hangs there, too: it gathers weights
        pytest.param("hang_in_forward 1 12", 1, "forward of step 12", "fsdp2", marks=pytest.mark.slow),
        pytest.param(
            "hang_in_forward 1 12", 1, "forward of step 12", "deepspeed_zero3", marks=pytest.mark.slow
        ),
    ],
)
def test_a_hang_is_named_with_the_stacks_of_all(start, fault, culprit, phase, config):
    job = start(fault, config=config, hang_timeout_s=HANG_TIMEOUT_S).wait_for_checkpoint()
    seconds, output = job.end()
    print(f"{fault} -> all gone: {seconds:.1f} s")
    assert f"FAULT {fault.split()[0]}" in output and TWO_PROCESSES in output
    assert seconds <= HANG_TIMEOUT_S + 5 and job.process.returncode != 0
    record = outcome(job.folder)
    assert (record["outcome"], record["resumable"]) == ("failed", True)
    assert record["first_failing_process"] == culprit, record
    assert f"process {culprit}" in record["reason"] and phase in record["reason"]
    stacks = {r: (job.folder / "heartbeats" / f"rank-{r:05d}.stacks.txt").read_text() for r in (0, 1)}
    assert all("train.py" in text for text in stacks.values())
    assert FAULTY.name in stacks[culprit]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_is_told_from_a_hanging_one(start, rank):
    job = start(hang_timeout_s=HANG_TIMEOUT_S).wait_for_checkpoint()
    os.kill(job.pid(rank), signal.SIGSTOP)
    seconds, output = job.end()
    print(f"stopped {rank} -> all gone: {seconds:.1f} s")
    assert seconds <= HANG_TIMEOUT_S + 5 and job.process.returncode != 0 and TWO_PROCESSES in output
    record = outcome(job.folder)
    assert (record["outcome"], record["resumable"], record["first_failing_process"]) == ("failed", True, rank)
    assert f"process {rank} was stopped, is gone or stuck" in record["reason"]


def test_nan_on_one_process_stops_before_the_weights_move(start):
    job = start("nan 1 13", save_step=1, keep_checkpoints=30).wait_for_checkpoint()
    _, output = job.end()
    assert "FAULT nan" in output and TWO_PROCESSES in output and job.process.returncode != 0
    record = outcome(job.folder)
    assert (record["outcome"], record["resumable"], record["first_failing_process"]) == ("failed", False, 1)
    assert (
        "step 13" in record["reason"] and "not finite" in record["reason"] and "process 1" in record["reason"]
    )
    assert Checkpoints(job.folder / "checkpoints", 30).newest().step == 12


@pytest.mark.slow
@pytest.mark.parametrize("config", ["cpu_2_processes", *SHARDED])
def test_a_gradient_that_is_not_finite_moves_no_weight(start, config):
    """The losses are: nothing but the norm tells, and DeepSpeed has a way of its own to say it."""
    job = start("nan_gradient 1 13", config=config, save_step=1, keep_checkpoints=30).wait_for_checkpoint()
    _, output = job.end()
    assert "FAULT nan_gradient" in output and TWO_PROCESSES in output and job.process.returncode != 0
    record = outcome(job.folder)
    assert (record["outcome"], record["resumable"]) == ("failed", False)
    assert "step 13" in record["reason"] and "not finite" in record["reason"], record["reason"]
    assert Checkpoints(job.folder / "checkpoints", 30).newest().step == 12


@pytest.mark.parametrize(
    ("fault", "resumable", "reason"),
    [
        ("os_error 1 12", True, "OSError: [Errno 5] Input/output error: 'tokens-00000.arrow'"),
        pytest.param("user_error 1 12", False, "tokens-00000.arrow:7", marks=pytest.mark.slow),
    ],
)
def test_an_error_of_one_process_is_the_outcome_and_not_the_broken_connection(
    start, fault, resumable, reason
):
    job = start(fault).wait_for_checkpoint()
    seconds, output = job.end()
    print(f"{fault} -> all gone: {seconds:.1f} s")
    assert f"FAULT {fault.split()[0]}" in output and TWO_PROCESSES in output
    assert seconds <= 10 and job.process.returncode != 0
    record = outcome(job.folder)
    assert (record["outcome"], record["resumable"]) == ("failed", resumable)
    assert record["first_failing_process"] == 1 and reason in record["reason"]


def test_a_killed_loader_worker_is_named(start):
    job = start(num_workers=2).wait_for_checkpoint()
    workers = [p for p in psutil.Process(job.pid(1)).children() if p.name() != "wandb-core"]
    assert len(workers) == 2
    workers[1].kill()
    seconds, output = job.end()
    print(f"worker killed -> all gone: {seconds:.1f} s")
    assert seconds <= 10 and job.process.returncode != 0 and TWO_PROCESSES in output
    record = outcome(job.folder)
    assert (record["outcome"], record["resumable"], record["first_failing_process"]) == ("failed", True, 1)
    # torch's words depend on whether it hears of the death or misses the worker first
    died = rf"worker \(pid(\(s\))? {workers[1].pid}\) (is killed|exited unexpectedly)"
    assert re.search(died, record["reason"]) and "--num_workers" in record["reason"]


@pytest.mark.slow
def test_a_hanging_loader_worker_is_named_before_its_process(start):
    job = start("hang 1 12", num_workers=2, hang_timeout_s=HANG_TIMEOUT_S).wait_for_checkpoint()
    seconds, output = job.end()
    print(f"worker hangs -> all gone: {seconds:.1f} s")
    assert "FAULT hang" in output and TWO_PROCESSES in output and job.process.returncode != 0
    record = outcome(job.folder)
    assert (record["outcome"], record["resumable"], record["first_failing_process"]) == ("failed", True, 1)
    assert "step 12: the batch of loader worker 1 did not come" in record["reason"]


@pytest.mark.slow
def test_changed_options_are_refused_by_all_processes(start):
    job = start(max_seconds=0.1)
    job.process.communicate(timeout=60)
    before = {path: sha256_of(path) for path in job.folder.rglob("*") if path.is_file()}
    assert outcome(job.folder)["outcome"] == "interrupted"
    again = start(learning_rate=0.5)
    output, _ = again.process.communicate(timeout=60)
    assert again.process.returncode != 0
    assert "learning_rate: 0.0001 there, 0.5 now" in output
    assert before == {path: sha256_of(path) for path in job.folder.rglob("*") if path.is_file()}
