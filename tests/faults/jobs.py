"""Jobs of two processes that train until something happens to them."""

import re
import time
from pathlib import Path

import psutil
from command_lines import general_distillation

from tinybert_dist.files import read_json

FAULTY = Path(__file__).with_name("faulty_general_distill.py")
TWO_PROCESSES = "2 on cpu"
ENDLESS = 1_000_000
OPTIONS = {
    "max_seq_len": 32,
    "train_batch_size": 8,
    "max_steps": ENDLESS,
    "lr_schedule": "constant",
    "warmup_proportion": 0,
    "learning_rate": 1e-4,
    "save_step": 10,
    "wandb_mode": "disabled",
}


def arguments(workspace, folder, **changes):
    """The command line of general_distill; wandb off: its start takes seconds."""
    return general_distillation(workspace, folder, **OPTIONS | changes)


class Job:
    """A launched job, its processes, and how long they live on after something happened."""

    def __init__(self, process, folder):
        self.process, self.folder = process, folder
        self.launcher = psutil.Process(process.pid)
        self.family = [self.launcher]

    def wait_for(self, condition, timeout_s=60):
        """Until the condition holds and all processes are known."""
        give_up_at = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                self.kill()
                raise AssertionError(self.process.communicate()[0][-4000:])
            time.sleep(0.005)
        self.family = [self.launcher, *self.launcher.children(recursive=True)]
        return self

    def wait_for_checkpoint(self, step=10):
        """Until the checkpoint of a step, or a later one, is there."""
        return self.wait_for(lambda: list(self.folder.glob(f"checkpoints/step-*{step % 10}")))

    def pid(self, rank):
        """Process id of a rank, from its heartbeat."""
        return read_json(self.folder / "heartbeats" / f"rank-{rank:05d}.json")["pid"]

    def end(self, limit_s=60.0):
        """(seconds until every process was gone, output of the job)"""
        since = time.monotonic()
        while alive := [p for p in self.family if _is_alive(p)]:
            if time.monotonic() > since + limit_s:
                break
            self.process.poll()
            time.sleep(0.02)
        seconds = time.monotonic() - since
        self.kill()
        output, _ = self.process.communicate()
        assert not alive, (alive, output[-4000:])
        return seconds, output

    def kill(self):
        """Ends what is left."""
        for process in self.family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass


def _is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def outcome(folder):
    """What outcome.json says."""
    return read_json(folder / "outcome.json")


def resume(start):
    """The same command goes on from the newest checkpoint (and stops soon)."""
    job = start(max_seconds=0.1)
    output, _ = job.process.communicate(timeout=60)
    step = int(re.search(r"resuming .* from step (\d+)", output)[1])
    assert job.process.returncode == 0 and TWO_PROCESSES in output
    assert outcome(job.folder)["outcome"] == "interrupted" and outcome(job.folder)["step"] > step
    return step
