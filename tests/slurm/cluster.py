"""A real Slurm cluster of virtual nodes (lab.sh), as a user on its login node meets it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAB = Path(__file__).with_name("lab.sh")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare", "nsenter", "pgrep")
ON_THE_WAY = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"}
SEARCH_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
NODES, CPUS, GPUS = 3, 8, 2


def missing_programs():
    """Those of the programs a cluster needs that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCH_PATH) is None]


def can_track_by_cgroup():
    """Whether Slurm may make cgroups here."""
    return os.access("/sys/fs/cgroup/freezer", os.W_OK) and os.getuid() == 0


class Cluster:
    """Controller and nodes; they end with this process. `shared`: a folder all nodes see, unlike /tmp."""

    def __init__(self, tracking="linuxproc", **settings):
        self.shared = Path(tempfile.mkdtemp(prefix="tinybert-slurm-", dir="/var/tmp"))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            "PATH": SEARCH_PATH,
            "TINYBERT_HOME": str(ROOT),
            "TINYBERT_VENV": sys.prefix,
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "DS_ACCELERATOR": "cpu",
        }
        reader, self._hold = os.pipe()
        command = ["bash", LAB, "up", self._lab, str(NODES), str(CPUS), str(GPUS)]
        settings = {"LAB_HOLD": "1", "SLURMD_TIMEOUT": "8", **settings}
        if tracking == "cgroup":
            settings["CGROUPS"] = "1"
        subprocess.run(command, check=True, env=self.environment | settings, stdin=reader, timeout=60)
        os.close(reader)

    @property
    def _lab(self):
        return str(self.shared / "lab")

    def run(self, *command, cwd=None, env=None, timeout_s=60):
        """What a command on the login node prints; it must succeed."""
        result = subprocess.run(
            ["bash", LAB, "exec", self._lab, *map(str, command)],
            capture_output=True, text=True, check=False, cwd=cwd or self.shared,
            env=self.environment | {k: str(v) for k, v in (env or {}).items()}, timeout=timeout_s,
        )  # fmt: skip
        assert result.returncode == 0, (command, result.stdout, result.stderr)
        return result.stdout.strip()

    def sbatch(self, *arguments, cwd=None, env=None):
        """Submits; returns the job's id."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd, env=env).split(";")[0]

    def job(self, job):
        """What Slurm knows of a job (or of an array's first listed task), by name."""
        lines = self.run("scontrol", "show", "job", "-o", job).splitlines()
        return dict(re.findall(r"(\w+)=(\S*)", lines[0]))

    def wait(self, job, timeout_s=180):
        """`job` as soon as it has ended, or never can begin."""
        give_up_at = time.monotonic() + timeout_s
        while time.monotonic() < give_up_at:
            facts = self.job(job)
            if facts["JobState"] not in ON_THE_WAY or facts["Reason"] == "DependencyNeverSatisfied":
                return facts
            time.sleep(0.2)
        raise AssertionError((self.job(job), self.run("squeue")))

    def node(self, verb, name, *command):
        """cut, heal, kill or start a node; "on": what a command prints there."""
        arguments = ["bash", LAB, verb, self._lab, name, *map(str, command)]
        result = subprocess.run(
            arguments, check=True, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        return result.stdout.strip()

    def idle(self, timeout_s=60):
        """Waits until every node is free, so that a test begins as it would alone."""
        give_up_at = time.monotonic() + timeout_s
        while time.monotonic() < give_up_at:
            if len(self.run("sinfo", "-h", "-N", "-p", "debug", "-t", "idle", "-o", "%N").split()) == NODES:
                return
            time.sleep(0.2)
        raise AssertionError(self.run("sinfo", "-N", "-l"))

    def down(self):
        """Ends it and removes its folder."""
        subprocess.run(["bash", LAB, "down", self._lab], check=True, env=self.environment)
        os.close(self._hold)
        shutil.rmtree(self.shared, ignore_errors=True)
