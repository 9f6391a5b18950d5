"""The time limit, and when a job must not start again though it was interrupted and saved."""

import re

import pytest
from slurm_jobs import general, outcome

pytestmark = pytest.mark.slurm
ENDLESS = {"max_steps": 1_000_000, "lr_schedule": "constant", "warmup_proportion": 0}


def test_slurm_itself_signals_before_the_time_limit(submit, shared_workspace, folder):
    """With a lead of 60 s it comes 60 to 120 s before the end."""
    run = folder / "run"
    options = ENDLESS | {"max_seconds": 600}
    limits = ["--time=3", "--signal=B:USR1@60"]
    job = submit("general_distill", *general(shared_workspace, run, **options), sbatch=limits)
    job.until("back into the queue", 180)
    step = outcome(run)["step"]
    assert re.search(r"interrupted at step \d+ \(SIGUSR1\)", job.log)
    job.until(f"resuming .* from step {step}")
    (run / "STOP").touch()
    assert job.ended() == ("FAILED", 1), job.log


def test_a_signal_before_training_has_begun_is_given_again(slurm, submit, shared_workspace, folder):
    run = folder / "run"
    job = submit("general_distill", *general(shared_workspace, run, **ENDLESS), MAX_RESTARTS=0)
    job.until("node1: node")
    slurm.run("scancel", "--batch", "--signal=USR1", job.id)
    assert not run.exists()  # its imports are not even done
    assert job.ended() == ("FAILED", 0), job.log
    assert outcome(run)["outcome"] == "interrupted" and outcome(run)["reason"] == "SIGUSR1"
    assert "MAX_RESTARTS" in job.log or "no progress" in job.log


def test_not_more_often_than_it_may(slurm, submit, shared_workspace, folder):
    run = folder / "run"
    job = submit("general_distill", *general(shared_workspace, run, **ENDLESS), MAX_RESTARTS=1)
    job.until_checkpoint(run)
    slurm.run("scancel", "--batch", "--signal=USR1", job.id)
    job.until("resuming")
    step = outcome(run)["step"]
    job.until_checkpoint(run, after=step)
    slurm.run("scancel", "--batch", "--signal=USR1", job.id)
    assert job.ended() == ("FAILED", 1), job.log
    assert "started again 1 times already (MAX_RESTARTS)" in job.log
    assert outcome(run)["step"] > step


def test_a_lead_as_long_as_the_time_limit_is_told(submit, shared_workspace, folder):
    """Slurm then signals as soon as the job begins, at every start."""
    run = folder / "run"
    limits = ["--time=5", "--signal=B:USR1@600"]
    job = submit("general_distill", *general(shared_workspace, run, **ENDLESS), sbatch=limits)
    assert job.ended() == ("FAILED", 1), job.log
    assert "is --signal's time as long as --time?" in job.log
    assert "again: give --time more, or --signal less" in job.log


def test_a_model_of_the_hub_where_there_is_no_network(slurm, submit, shared_workspace, folder):
    """prefetch.sh leaves it in the cache of Hugging Face, in this layout."""
    cache, revision = folder / "cache" / "hub" / "models--some-org--some-teacher", "0" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(revision)
    (cache / "snapshots").mkdir()
    (cache / "snapshots" / revision).symlink_to(shared_workspace / "teacher")
    run = folder / "run"
    names = {"teacher_model": "some-org/some-teacher", "max_steps": 4, "wandb_mode": "auto"}
    variables = {"HF_HOME": folder / "cache", "HF_HUB_OFFLINE": "", "WANDB_MODE": "offline"}
    job = submit("general_distill", *general(shared_workspace, run, **names), **variables)
    assert job.ended() == ("COMPLETED", 0), job.log
    assert list(run.glob("wandb/offline-run-*"))


def test_a_folder_of_a_job_that_still_runs_is_refused(submit, shared_workspace, folder):
    run = folder / "run"
    first = submit("general_distill", *general(shared_workspace, run, **ENDLESS))
    first.until_checkpoint(run)
    second = submit("general_distill", *general(shared_workspace, run, **ENDLESS))
    assert second.ended() == ("FAILED", 0), second.log
    assert "is in use by another job" in second.log
    before = outcome(run)
    assert before["outcome"] == "running"
    (run / "STOP").touch()
    first.ended()
