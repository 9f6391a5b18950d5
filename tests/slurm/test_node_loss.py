"""Nodes without power or network: the job goes on elsewhere, and nothing it left behind interferes."""

import time

import pytest
from slurm_jobs import general, outcome

from tinybert_dist.files import sha256_of

pytestmark = pytest.mark.slurm


@pytest.fixture
def lose(slurm):
    """lose("cut", node) or lose("kill", node); afterwards it comes back."""
    lost = []

    def lose(how, node):
        lost.append((how, node))
        slurm.node("cut", node)  # a power cut closes no connection either
        if how == "kill":
            slurm.node("kill", node)

    yield lose
    for how, node in lost:
        slurm.node("start" if how == "kill" else "heal", node)


@pytest.mark.parametrize("victim", ["node1", "node2"])
def test_a_power_cut_moves_the_job_to_the_spare_node(
    slurm, submit, shared_workspace, folder, undisturbed, lose, victim
):
    """Of the node with the job's script and process 0, and of the other one."""
    run = folder / "run"
    job = submit("general_distill", *general(shared_workspace, run), sbatch=["--nodes=2"])
    job.until_checkpoint(run)
    assert slurm.job(job.id)["NodeList"] == "node[1-2]"
    lose("kill", victim)
    lost_at = time.monotonic()
    assert job.ended(300) == ("COMPLETED", 1), job.log
    print(f"{victim} lost -> finished elsewhere: {time.monotonic() - lost_at:.0f} s")
    assert "node3: node" in job.log and "resuming" in job.log
    assert sha256_of(run / "model.safetensors") == undisturbed


def test_what_runs_on_a_node_that_is_cut_off_cannot_commit(slurm, submit, shared_workspace, folder, lose):
    """Slurm starts the job elsewhere; the old process holds the lock, and wakes up when all is done."""
    run = folder / "run"
    job = submit("general_distill", *general(shared_workspace, run), sbatch=["--exclude=node3"])
    job.until_checkpoint(run)
    assert slurm.job(job.id)["NodeList"] == "node1"
    old = job.process(run, rank=0)
    slurm.run("kill", "-STOP", old)
    lose("cut", "node1")
    assert job.ended(300) == ("COMPLETED", 1), job.log
    assert "node2: node" in job.log and "an earlier start of this job still runs" in job.log
    before = contents(run)
    slurm.run("kill", "-CONT", old)
    while slurm.run("bash", "-c", f"ps -o stat= -p {old} || true").strip("Z+ls "):
        time.sleep(0.2)
    (stderr,) = (folder / "logs" / f"{job.id}.0").glob("node-0/*/attempt_0/0/stderr.log")
    assert "a newer attempt has taken over" in stderr.read_text()
    assert contents(run) == before and outcome(run)["outcome"] == "finished"


def contents(run):
    """What counts in a run folder."""
    files = [run / "outcome.json", run / "model.safetensors", *run.glob("checkpoints/*/*")]
    return {path: sha256_of(path) for path in files}
