"""Is the run well: stop requests, equality of weights across processes, finite numbers."""

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.utils import broadcast, gather
from torch import Tensor

from tinybert_dist.config import StageFailed
from tinybert_dist.training.heartbeat import beat
from tinybert_dist.training.strategy import RunAccelerator

LAUNCHER = os.getppid()  # of a process started by a launcher; another one as soon as that is gone
LAUNCHED = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


class TrainingFailed(StageFailed):
    """The run cannot go on; the message says why and what to do.

    process: where it failed first, None for this one. resumable: the same command can go on.
    """

    def __init__(self, message: str, *, process: int | None = None, resumable: bool = True):
        super().__init__(message)
        self.process, self.resumable = process, resumable


class StopRequest:
    """True once this process was asked to stop: SIGTERM, SIGUSR1, SIGINT, a file STOP, the time limit, or a
    launcher that died (of SIGUSR1 it always does, and one of a single process passes no signal on).

    The loop agrees on it across processes at the step boundary, saves, and ends as interrupted.
    """

    def __init__(self, stop_file: Path, max_seconds: float | None):
        self.stop_file, self.reason = stop_file, ""
        self._deadline_at = time.monotonic() + max_seconds if max_seconds else None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason:
            raise KeyboardInterrupt  # the second Ctrl-C means now
        self.reason = signal.Signals(number).name

    def __bool__(self) -> bool:
        if not self.reason and self._deadline_at and time.monotonic() > self._deadline_at:
            self.reason = "max_seconds"
        if not self.reason and self.stop_file.exists():
            self.reason = f"file {self.stop_file.name}"
        if not self.reason and LAUNCHED and os.getppid() != LAUNCHER:
            self.reason = "the launcher is gone"
        return bool(self.reason)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without torch's reports of dead loader workers, which it raises in whatever the main thread does."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def check_equal(accelerator: RunAccelerator, kind: str, whole: list[tuple[str, Tensor]], step: int) -> None:
    """Raises TrainingFailed on every process when a gradient or weight differs between them, naming it.

    kind: "gradient" (before the step: names the one that was not synchronised; after it clipping has made all
    weights differ) or "weight". whole: those each process holds a whole copy of; shards are one copy by
    construction. The original trained one unsynchronised student per GPU and nobody noticed.
    """
    if accelerator.num_processes == 1 or not whole:
        return
    # the bits as integers: their sum is exact, so one differing bit shows
    beat("reduce")
    sums = torch.stack([t.contiguous().view(torch.int32).sum(dtype=torch.int64) for _, t in whole])
    differs = (sums != broadcast(sums.clone())).to(torch.int64)
    by_rank = gather(differs.unsqueeze(0)).cpu()
    if by_rank.any():
        rank, index = (int(i) for i in by_rank.nonzero()[0])
        raise TrainingFailed(
            f"step {step}: the {kind} of {whole[index][0]} (and {int(by_rank.any(0).sum()) - 1} more) of "
            f"process {rank} differs from process 0: gradients were not synchronised. Every trained module "
            "must be called through the wrapper that accelerator.prepare returned.",
            process=rank,
            resumable=False,
        )


def check_gradients_arrive(moments: dict[str, Tensor], reached: list[str]) -> None:
    """Raises TrainingFailed when the first step left a parameter without the gradient the loss gives it.

    moments: after the first step; reached: parameters with a gradient in a throw-away pass without wrapper.
    """
    missing = [name for name in reached if not moments[f"exp_avg.{name}"].any()]
    if missing:
        raise TrainingFailed(
            f"the first step gave no gradient to {missing[0]} (and {len(missing) - 1} more), though the loss "
            "depends on it. Every trained module must be called through the wrapper that accelerator.prepare "
            "returned.",
            process=0,
            resumable=False,
        )


def check_finite(losses: dict[str, float], grad_norm: float, bad_ranks: list[int], step: int) -> None:
    """Raises TrainingFailed before the optimizer moves when a loss or the gradient is NaN or infinite."""
    bad_terms = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad_terms or bad_ranks or not math.isfinite(grad_norm):
        where = f" first seen on process {bad_ranks[0]}" if bad_ranks else ""
        raise TrainingFailed(
            f"step {step}: loss or gradient is not finite ({', '.join(bad_terms) or 'gradient norm'}){where}."
            " The weights are as they were before this step. Start again in another --output_dir with a "
            "lower --learning_rate or --max_grad_norm, or with --mixed_precision no.",
            process=bad_ranks[0] if bad_ranks else 0,
            resumable=False,
        )
