"""Real Slurm: run with `bash tests/slurm/run.sh`, or `pytest -m slurm tests/slurm` where it is installed."""

import shutil

import pytest
from cluster import Cluster, can_track_by_cgroup, missing_programs
from slurm_jobs import StageJob, general

from tinybert_dist.files import sha256_of


@pytest.fixture(scope="session")
def slurm(request):
    """The cluster: three nodes of 8 CPUs and 2 GPUs, which Slurm counts and nobody has.

    Parameter "cgroup": it tracks processes by cgroups, as most clusters do, and signals fewer of them.
    """
    tracking = getattr(request, "param", "linuxproc")
    if missing := missing_programs():
        pytest.skip(f"needs a Slurm on this machine ({', '.join(missing)}): bash tests/slurm/run.sh")
    if tracking == "cgroup" and not can_track_by_cgroup():
        pytest.skip("needs the right to make cgroups (version 1) on this machine")
    cluster = Cluster(tracking)
    yield cluster
    cluster.down()


@pytest.fixture(scope="session")
def shared_workspace(slurm, workspace):
    """The workspace on the disk that all nodes see."""
    return shutil.copytree(workspace, slurm.shared / "workspace")


@pytest.fixture
def folder(slurm, request):
    """A test's own folder on that disk, on an idle cluster."""
    slurm.idle()
    path = slurm.shared / request.node.name.replace("[", "-").strip("]")
    path.mkdir()
    return path


@pytest.fixture
def submit(slurm, shared_workspace, folder):
    """submit(stage, *arguments, sbatch=(), **variables): stage.sbatch as a job, called in `folder`."""
    jobs = []

    def start(stage, *arguments, sbatch=(), **variables):
        jobs.append(StageJob(slurm, folder, stage, arguments, sbatch, variables))
        return jobs[-1]

    yield start
    for job in jobs:
        slurm.run("scancel", job.id)


@pytest.fixture(scope="session")
def undisturbed(slurm, shared_workspace):
    """sha256 of the weights of a run of two nodes that nothing happens to."""
    slurm.idle()
    folder = slurm.shared / "undisturbed"
    folder.mkdir()
    arguments = general(shared_workspace, folder / "run")
    job = StageJob(slurm, folder, "general_distill", arguments, ["--nodes=2"])
    assert job.ended() == ("COMPLETED", 0), job.log
    return sha256_of(folder / "run" / "model.safetensors")
