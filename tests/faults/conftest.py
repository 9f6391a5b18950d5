import subprocess

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


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(size) mounts a file system of that size, or changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size):
        options = f"size={size},remount" if folder.is_mount() else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a small file system")
        return folder

    yield resize
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)
