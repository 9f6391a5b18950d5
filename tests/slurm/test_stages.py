"""The shipped job script on a real cluster: what runs, on how many nodes, and how it ends."""

import pytest
from slurm_jobs import general, outcome

pytestmark = pytest.mark.slurm


def test_two_nodes(submit, shared_workspace, folder):
    run = folder / "run"
    job = submit("general_distill", *general(shared_workspace, run, max_steps=20), sbatch=["--nodes=2"])
    assert job.ended() == ("COMPLETED", 0), job.log
    assert "2 on cpu, DDP" in job.log and outcome(run)["outcome"] == "finished"
    assert {"node1", "node2"} == {host for host in ("node1", "node2", "node3") if f"{host}: node" in job.log}
