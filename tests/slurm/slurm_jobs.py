"""Stages as jobs of a real Slurm, started by the shipped script."""

import re
import time

from cluster import ROOT
from command_lines import general_distillation

from tinybert_dist.files import read_json

SCRIPT = ROOT / "launch" / "slurm" / "stage.sbatch"
OPTIONS = {
    "max_seq_len": 32,
    "train_batch_size": 8,
    "max_steps": 300,
    "learning_rate": 1e-3,
    "save_step": 20,
    "logging_steps": 10,
    "wandb_mode": "disabled",
}
CPU = {"ACCELERATE_CONFIG": "accelerate_configs/cpu_2_processes.yaml"}
SMALL = ("--gpus-per-node=1", "--cpus-per-task=2", "--time=10", "--signal=B:USR1@60")


def general(workspace, run, **changes):
    """Arguments of a general distillation that takes long enough to be disturbed."""
    return general_distillation(workspace, run, **OPTIONS | changes)


class StageJob:
    """A job of stage.sbatch with its log."""

    def __init__(self, slurm, folder, stage, arguments, sbatch=(), variables=None):
        self.slurm, self.folder = slurm, folder
        self.id = slurm.sbatch(
            *SMALL, *sbatch, SCRIPT, stage, *arguments, cwd=folder, env=CPU | (variables or {})
        )

    @property
    def log(self):
        return "".join(path.read_text() for path in sorted(self.folder.glob(f"*-{self.id}.out")))

    def until(self, pattern, timeout_s=120):
        """Until the log has a line like this."""
        give_up_at = time.monotonic() + timeout_s
        while not re.search(pattern, self.log):
            assert time.monotonic() < give_up_at, f"no {pattern!r} in:\n{self.log}"
            time.sleep(0.05)
        return self

    def until_that(self, holds, timeout_s=120):
        """Until it holds."""
        give_up_at = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < give_up_at, self.log
            time.sleep(0.05)

    def until_checkpoint(self, run, after=0, timeout_s=120):
        """Until the run has saved a step later than `after`."""

        def saved():
            return any(int(path.name[5:]) > after for path in run.glob("checkpoints/step-*[0-9]"))

        self.until_that(saved, timeout_s)

    def process(self, run, rank):
        """Id of a process that trains, as the login node of the lab sees it: it sees those of all nodes."""
        for pid in self.slurm.run("pgrep", "-f", f"general_distill.*{run} ").split():
            variables = self.slurm.run("cat", f"/proc/{pid}/environ").split("\0")
            if f"RANK={rank}" in variables:
                return pid
        raise AssertionError(f"no process {rank} of {run}")

    def ended(self, timeout_s=180):
        """(state, how often it was started again)"""
        facts = self.slurm.wait(self.id, timeout_s)
        return facts["JobState"], int(facts["Restarts"])


def outcome(run):
    """What outcome.json says."""
    return read_json(run / "outcome.json")
