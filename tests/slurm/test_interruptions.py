"""Signals and preemption: saved, and started again when that is right, however Slurm tracks processes."""

import pytest
from slurm_jobs import general, outcome

from tinybert_dist.files import sha256_of

pytestmark = [pytest.mark.slurm, pytest.mark.parametrize("slurm", ["linuxproc", "cgroup"], indirect=True)]
TWO_NODES = ["--nodes=2"]
ENDLESS = {"max_steps": 100_000, "lr_schedule": "constant", "warmup_proportion": 0}


def test_a_signal_before_the_time_limit_changes_nothing_but_the_time(
    slurm, submit, shared_workspace, folder, undisturbed
):
    run = folder / "run"
    job = submit("general_distill", *general(shared_workspace, run), sbatch=TWO_NODES)
    job.until_checkpoint(run)
    slurm.run("scancel", "--batch", "--signal=USR1", job.id)  # as --signal=B:USR1 does it
    assert job.ended() == ("COMPLETED", 1), job.log
    assert "back into the queue" in job.log and "resuming" in job.log
    assert outcome(run)["outcome"] == "finished" and sha256_of(run / "model.safetensors") == undisturbed


def test_scancel_is_final_and_still_it_saves(slurm, submit, shared_workspace, folder):
    run = folder / "run"
    job = submit("general_distill", *general(shared_workspace, run, **ENDLESS), sbatch=TWO_NODES)
    job.until_checkpoint(run)
    slurm.run("scancel", job.id)
    assert job.ended() == ("CANCELLED", 0), job.log
    assert outcome(run)["outcome"] == "interrupted"
    assert (run / "checkpoints" / f"step-{outcome(run)['step']:08d}").is_dir()


def test_preempted_by_a_partition_of_higher_priority(slurm, submit, shared_workspace, folder, undisturbed):
    """The processes get TERM, this job's script nothing: it has to put itself back."""
    run, nodes = folder / "run", "--nodelist=node[1-2]"
    job = submit(
        "general_distill", *general(shared_workspace, run), sbatch=[*TWO_NODES, nodes, "--partition=low"]
    )
    job.until_checkpoint(run)
    other = slurm.sbatch(
        "--partition=debug", "--nodes=2", nodes, "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"
    )
    assert slurm.wait(other)["JobState"] == "COMPLETED"
    assert job.ended() == ("COMPLETED", 1), job.log
    assert sha256_of(run / "model.safetensors") == undisturbed
