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
        write_json(self.folder / TOKEN, {"token": secrets.token_hex(8)})
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

    def _try_lock(self) -> bool:
        assert self._lock is not None
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # any other error: this file system has no locks, and the token alone fences
            return error.errno not in {errno.EAGAIN, errno.EACCES}
        return True
