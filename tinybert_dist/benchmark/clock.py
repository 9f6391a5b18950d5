"""Time and memory of a piece of work, as the device sees them."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import torch

ResultT = TypeVar("ResultT")
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # of Linux' clear_refs: the peak of the resident set starts anew


class Clock:
    """Seconds of every `run`. On a GPU moments are noted in its queue: nothing waits before `seconds`."""

    def __init__(self, device: torch.device):
        self._device = device
        self._spans: list[tuple] = []
        self._cpu_s: list[float] = []

    def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Does the work, between two moments."""
        cpu_since, since = time.process_time(), self._now()
        result = work()
        self._spans.append((since, self._now()))
        self._cpu_s.append(time.process_time() - cpu_since)
        return result

    def seconds(self) -> list[float]:
        """Of every run, in order."""
        if self._device.type != "cuda":
            return [end - since for since, end in self._spans]
        torch.cuda.synchronize(self._device)
        return [since.elapsed_time(end) / 1e3 for since, end in self._spans]

    def cpu_seconds(self) -> list[float]:
        """Computed by all threads of this process in every run: a busy machine does not change them."""
        return self._cpu_s

    def _now(self):
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


class PeakMemory:
    """The most memory since it was made: of the GPU's allocator, else of this process."""

    def __init__(self, device: torch.device):
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # not Linux, or not allowed: the peak since the process began
                CLEAR_REFS.write_text(RESET_PEAK)

    def bytes(self) -> int:
        """Until now."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        with suppress(OSError):
            if found := re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE):
                return 1024 * int(found.group(1))
        return psutil.Process().memory_info().rss
