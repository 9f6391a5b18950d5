import pytest
from jobs import FAULTY, Job, arguments


@pytest.fixture
def start(workspace, launch, tmp_path, monkeypatch):
    """start("hang 1 3", num_workers=1): the job with this fault, in tmp_path/run."""
    jobs = []

    def begin(fault="none -1 0", config="", **changes):
        monkeypatch.setenv("FAULT", fault)
        folder = tmp_path / "run"
        jobs.append(
            Job(launch(FAULTY, *arguments(workspace, folder, **changes), config=config, wait=False), folder)
        )
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()
