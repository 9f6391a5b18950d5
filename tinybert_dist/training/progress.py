"""The one progress line of a run."""

import math
import sys
import time
from collections.abc import Mapping
from typing import TextIO

SHORT = {"loss/total": "loss", "loss/attention": "att", "loss/hidden": "hid", "loss/prediction": "pred"}
SHORT["eval/score"] = "score"

MAX_WAIT_PCT = 20
LOADER_BOUND = " (loader-bound: raise --num_workers)"


class ProgressLine:
    """Rewrites one line on a terminal; elsewhere prints a plain line at most every `every_s` seconds, the
    scores, and the last.

    Silent unless `is_main`. `start_step` is the step a resumed run begins at, for the ETA.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        is_main: bool,
        stream: TextIO | None = None,
        every_s: float = 10.0,
        start_step: int = 0,
    ):
        self._total_steps, self._start_step, self._every_s = total_steps, start_step, every_s
        self._stream = (stream or sys.stderr) if is_main else None
        self._in_place = bool(self._stream and self._stream.isatty())
        self._started_at = time.monotonic()
        self._shown_at = -math.inf
        self._width = 0

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Shows `values` (keys as in metrics.jsonl; others are left out) after optimizer step `step`."""
        if self._stream is None:
            return
        now = time.monotonic()
        wait_s = 0.1 if self._in_place else self._every_s
        is_news = step == self._total_steps or "eval/score" in values
        if not is_news and now - self._shown_at < wait_s:
            return
        self._shown_at = now
        done = step - self._start_step
        eta_s = (now - self._started_at) / done * (self._total_steps - step) if done > 0 else math.nan
        self._show(f"step {step}/{self._total_steps}  {progress_text(values)}  ETA {readable_time(eta_s)}")

    def finish(self) -> None:
        """Ends the line, so that what is printed next starts on its own."""
        if self._stream is not None and self._in_place and self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0

    def _show(self, line: str) -> None:
        assert self._stream is not None
        if self._in_place:
            self._stream.write("\r" + line.ljust(self._width))  # blanks over the rest of a longer line
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def progress_text(values: Mapping[str, float]) -> str:
    """Loss parts, learning rate, gradient norm, speed, padding, data wait and memory, as far as given."""
    parts = [f"{short} {values[key]:.4g}" for key, short in SHORT.items() if key in values]
    formats = (
        ("learning_rate", lambda v: f"lr {v:.2e}"),
        ("grad_norm", lambda v: f"norm {v:.3g}"),
        ("throughput/tokens_per_s", lambda v: f"{readable_count(v)} tok/s"),
        ("throughput/padding_pct", lambda v: f"pad {v:.0f}%"),
        ("throughput/data_wait_pct", lambda v: f"wait {v:.0f}%" + (LOADER_BOUND if v > MAX_WAIT_PCT else "")),
        ("throughput/mfu_pct", lambda v: f"MFU {v:.0f}%"),
        ("throughput/memory_gib", lambda v: f"{v:.1f} GiB"),
    )
    return "  ".join(parts + [show(values[key]) for key, show in formats if key in values])


def readable_count(value: float) -> str:
    """12345 -> 12.3k."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def readable_time(seconds: float) -> str:
    """192 -> 3m12s; two units at most."""
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h:02d}h"
    if hours:
        return f"{h}h{m:02d}m"
    return f"{m}m{s:02d}s" if minutes else f"{s}s"
