"""One attempt at a run: no two jobs write into one folder.

A lock, held by the main process and freed by the kernel when it dies, keeps a second job out. The token in
attempt.json is what is left where the file system has no locks, and for processes that outlive their main
process: the newest attempt owns the folder, and an older one that still lives must not commit.
"""

import errno
import fcntl
import os
import secrets
import time
from pathlib import Path
from typing import Any

from tinybert_dist.config import UserError
from tinybert_dist.files import read_json, write_json
from tinybert_dist.training.health import TrainingFailed

WAIT_S = 30.0  # a requeued job may start while the old one is saving
LOCK, TOKEN = "attempt.lock", "attempt.json"


class Superseded(TrainingFailed):
    """A newer attempt has taken over the folder: this one must not write anything into it."""


class Attempt:
    """This job's hold on a run folder."""

    def __init__(self, folder: Path):
        self.folder, self.token = folder, ""
        self._lock: int | None = None

    def lock(self) -> None:
        """Keeps other jobs out until `release`. Main process.

        Raises UserError when another job holds the folder and does not let go within WAIT_S.
        """
        # opened once: closing any descriptor of it would free the lock
        self._lock = os.open(self.folder / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
        give_up_at, told = time.monotonic() + WAIT_S, False
        while not self._try_lock():
            if time.monotonic() > give_up_at:
                if self._is_held_by_an_earlier_start():
                    print(
                        f"{self.folder}: an earlier start of this job still runs, on a node that was given "
                        "up; it cannot commit any more",
                        flush=True,
                    )
                    return
                self.release()
                raise UserError(
                    f"--output_dir {self.folder} is in use by another job, which still runs. Wait for it, "
                    "stop it (for example with a file STOP in the folder), or give another --output_dir."
                )
            if not told:
                print(f"{self.folder} is in use by another job; waiting up to {WAIT_S:.0f} s", flush=True)
                told = True
            time.sleep(0.2)

    def take_over(self) -> str:
        """Makes this the newest attempt; returns its token, which every process of the job must know."""
        write_json(self.folder / TOKEN, {"token": secrets.token_hex(8), **_slurm_start()})
        return read_json(self.folder / TOKEN)["token"]

    def require_ours(self) -> None:
        """Raises Superseded when a newer attempt has taken over. Call right before anything is committed."""
        if read_json(self.folder / TOKEN)["token"] != self.token:
            raise Superseded(
                f"a newer attempt has taken over {self.folder}; this one ends without writing into it"
            )

    def release(self) -> None:
        """Lets the next job in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _is_held_by_an_earlier_start(self) -> bool:
        # Slurm starts a job again when it has given up what ran before; a node that is cut off may run on
        own, token = _slurm_start(), self.folder / TOKEN
        holder = read_json(token) if own and token.exists() else {}
        return holder.get("job", "") == own.get("job") and holder["start"] < own["start"]

    def _try_lock(self) -> bool:
        assert self._lock is not None
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # any other error: this file system has no locks, and the token alone fences
            return error.errno not in {errno.EAGAIN, errno.EACCES}
        return True


def _slurm_start() -> dict[str, Any]:
    """Which start of which Slurm job this is; nothing outside of Slurm."""
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    return {"job": os.environ["SLURM_JOB_ID"], "start": int(os.environ.get("SLURM_RESTART_COUNT", "0"))}
