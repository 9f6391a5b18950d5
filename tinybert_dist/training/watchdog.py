"""Notices a process that hangs, was stopped or died, names it, and ends all the others.

Every process writes heartbeats/rank-NNNNN.json once a second and reads everybody's. Durations are measured by
the reader's clock, between two changes of a file: the clocks of several machines need not agree. A process
that waits for others in a collective is a victim; the culprit is the one with the least progress.
"""

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from tinybert_dist.config import StageFailed, UserError
from tinybert_dist.training.heartbeat import WAITS, Progress, beat, progress
from tinybert_dist.training.run_folder import Failure, RunFolder

PERIOD_S = 1.0
SILENT_S = 3.0  # a heartbeat that old is missing
FIRST_STEP_S = 600.0  # least patience before the first step is done: loading, compilation
COLLECTIVES = ("torch/distributed/", "deepspeed/comm/", "deepspeed/runtime/zero/parti")
GONE_S = 60.0  # heartbeats of other machines come through a shared file system
GRACE_S = 2.0  # the others write their stacks, or end by themselves when their collective breaks


@dataclass
class Seen:
    """The last heartbeat of a process, and when (own clock) it and its progress were seen to change."""

    beat: dict[str, Any]
    alive_at: float
    moved_at: float


class Watchdog:
    """Watches all processes of a job, from a thread of each, while entered."""

    def __init__(self, folder: RunFolder, rank: int, world_size: int, limit_s: float):
        self.folder, self.rank, self.limit_s = folder, rank, limit_s
        self.ranks = range(world_size)
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        self.neighbours = [r for r in self.ranks if r // per_node == rank // per_node and r != rank]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._ticks = 0

    def __enter__(self) -> "Watchdog":
        vars(progress).update(vars(Progress()))
        self.folder.heartbeats.mkdir(exist_ok=True)
        self._stacks = open(self._path(self.rank, "stacks.txt"), "w", encoding="utf-8")
        now = time.monotonic()
        self._seen = {rank: Seen({}, now, now) for rank in self.ranks}
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        self._stop.set()
        self._thread.join(5)
        faulthandler.cancel_dump_traceback_later()
        if kind is None:
            beat("done")
        self._write()
        self._stacks.close()
        if self._path(self.rank, "stacks.txt").stat().st_size == 0:
            self._path(self.rank, "stacks.txt").unlink()

    def cause_of(self, error: BaseException) -> Failure:
        """Who failed first when `error` reached this process: itself, or the one whose end was its cause."""
        process = getattr(error, "process", None)  # set by those that know
        is_told = isinstance(error, (StageFailed, UserError))
        is_own = is_told or process is not None or isinstance(error, torch.OutOfMemoryError)
        if isinstance(error, RuntimeError) and not is_own:
            # perhaps only a connection that closed, while the one that closed it is still being seen to die
            give_up_at = time.monotonic() + SILENT_S + 2 * PERIOD_S
            while len(self.ranks) > 1 and time.monotonic() < give_up_at:
                if failure := self._failure() or self._silent():
                    return failure
                time.sleep(0.1)
        reason = str(error) if is_told else f"{type(error).__name__}: {error}"
        resumable = getattr(error, "resumable", not isinstance(error, UserError))
        return Failure(self.rank if process is None else process, reason, resumable)

    def end_soon(self, seconds: float = 5.0) -> None:
        """Ends this process for certain: after a failure its exit may wait for a peer that is gone."""
        if len(self.ranks) > 1:
            timer = threading.Timer(seconds, os._exit, [1])
            timer.daemon = True
            timer.start()

    def _watch(self) -> None:
        while not self._stop.wait(min(PERIOD_S, self.limit_s / 5)):
            self._write()
            # by a thread of C, for a main thread that never gives the interpreter back; neighbours end it
            faulthandler.dump_traceback_later(self._patience_s(), exit=not self.neighbours, file=self._stacks)
            if failure := self._failure() or self._gone() or self._stalled():
                self._end(failure)

    def _gone(self) -> Failure | None:
        """A process of another machine, whose end no launcher here and perhaps no connection tells."""
        others = [r for r in self.ranks if r != self.rank and r not in self.neighbours]
        silent = [r for r in others if self._age_s(r) > GONE_S]
        # all of them at once: rather the file system that stalls, or this machine that is cut off
        is_one_of_them = len(silent) == 1 or 0 < len(silent) < len(others)
        return self._stall_of(silent[0]) if is_one_of_them else None

    def _end(self, failure: Failure) -> None:
        self.folder.fail(failure, progress.step)
        faulthandler.dump_traceback(self._stacks)
        if self._stop.wait(GRACE_S):
            return
        for rank in self.neighbours:
            process = self._process_of(rank) if self._age_s(rank) > SILENT_S else None
            with contextlib.suppress(psutil.Error):
                if process and process.ppid() == os.getppid():  # not a later user of the number
                    process.kill()  # the launcher would wait 30 s for one that is stopped
        print(f"failed: {failure.reason}", file=sys.stderr, flush=True)
        os._exit(1)

    def _failure(self) -> Failure | None:
        """What another process has recorded, or a neighbour that is gone."""
        self._look()
        with contextlib.suppress(OSError):
            if recorded := self.folder.failure():
                return recorded
        for rank in self.neighbours:
            last = self._seen[rank].beat
            if last and last["phase"] != "done" and self._process_of(rank) is None:
                return Failure(rank, f"process {rank} died {_where(last)}: killed, or out of memory")
        return None

    def _silent(self) -> Failure | None:
        return next((self._stall_of(rank) for rank in self.ranks if self._age_s(rank) > SILENT_S), None)

    def _stalled(self) -> Failure | None:
        since = time.monotonic() - self._patience_s()
        unfinished = [rank for rank, seen in self._seen.items() if seen.beat.get("phase") != "done"]
        late = [rank for rank in unfinished if self._seen[rank].moved_at < since]
        # one that waits while another is at work is well; when all wait, their collectives do not match
        if late and (late == unfinished or not all(self._waits(rank) for rank in late)):
            return self._stall_of(min(unfinished, key=self._least_progress))
        return None

    def _stall_of(self, rank: int) -> Failure:
        seen, age_s = self._seen[rank], self._age_s(rank)
        if age_s > SILENT_S:
            what = (
                f"was stopped, is gone or stuck in native code {_where(seen.beat)}: silent for {age_s:.0f} s"
            )
        else:
            what = (
                f"hangs {_where(seen.beat)}: no progress for {time.monotonic() - seen.moved_at:.0f} s "
                f"(--hang_timeout_s {self.limit_s:g})"
            )
        return Failure(rank, f"process {rank} {what}; stacks of the others in {self.folder.heartbeats.name}/")

    def _least_progress(self, rank: int) -> tuple:
        last = self._seen[rank].beat
        is_silent = self._age_s(rank) > SILENT_S
        return (not is_silent, self._waits(rank), last.get("step", 0), last.get("events", 0))

    def _waits(self, rank: int) -> bool:
        return self._age_s(rank) <= SILENT_S and self._seen[rank].beat.get("waits", False)

    def _patience_s(self) -> float:
        # nobody begins a second step before all have done the first
        is_first = all(seen.beat.get("num_steps", 0) < 2 for seen in self._seen.values())
        return max(self.limit_s, FIRST_STEP_S) if is_first else self.limit_s

    def _age_s(self, rank: int) -> float:
        is_done = rank == self.rank or self._seen[rank].beat.get("phase") == "done"
        return 0.0 if is_done else time.monotonic() - self._seen[rank].alive_at

    def _process_of(self, rank: int) -> psutil.Process | None:
        try:
            process = psutil.Process(self._seen[rank].beat["pid"])
            return process if process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.Error, KeyError):
            return None

    def _look(self) -> None:
        now = time.monotonic()
        for rank in self.ranks:
            last, seen = self._read(rank), self._seen[rank]
            if last and last["ticks"] != seen.beat.get("ticks"):
                moved = any(last[key] != seen.beat.get(key) for key in ("step", "events"))
                self._seen[rank] = Seen(last, now, now if moved else seen.moved_at)

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            last = json.loads(self._path(rank, "json").read_bytes())
        except (OSError, ValueError):  # not there yet, or caught while it is written
            return None
        return last if last["attempt"] == self.folder.attempt.token else None

    def _write(self) -> None:
        self._ticks += 1
        waits = progress.phase in WAITS or _is_in_collective()
        own = {"attempt": self.folder.attempt.token, "pid": os.getpid(), "ticks": self._ticks, "waits": waits}
        content = json.dumps(own | vars(progress) | {"alive_at": time.time()}).encode().ljust(512)
        # over the same block, neither renamed nor synced: works on a full disk
        with contextlib.suppress(OSError):
            file = os.open(self._path(self.rank, "json"), os.O_CREAT | os.O_WRONLY, 0o666)
            try:
                os.write(file, content)
            finally:
                os.close(file)

    def _path(self, rank: int, suffix: str) -> Path:
        return self.folder.heartbeats / f"rank-{rank:05d}.{suffix}"


def _is_in_collective() -> bool:
    """Whether the main thread is in one: sharded weights are gathered inside forward and backward."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame and not any(part in frame.f_code.co_filename for part in COLLECTIVES):
        frame = frame.f_back
    return frame is not None


def _where(last: dict[str, Any]) -> str:
    return f"in phase {last['phase']} of step {last['step']}" if last else "before its first heartbeat"
