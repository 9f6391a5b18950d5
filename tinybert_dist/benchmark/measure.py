"""Repeats pieces of work, takes their time, and adds up over the processes what they worked on."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate.utils import broadcast_object_list

from tinybert_dist.benchmark.clock import Clock, PeakMemory
from tinybert_dist.micro_batch import MicroBatch
from tinybert_dist.training.strategy import RunAccelerator

MIN_REPEATS, MAX_REPEATS = 3, 500


class Work(NamedTuple):
    """What was computed on; tokens are real ones, padded_tokens all that the linear layers saw."""

    tokens: float = 0.0
    padded_tokens: float = 0.0
    pairs: float = 0.0  # (query, key): sum of squared lengths
    examples: float = 0.0
    micro_batches: float = 0.0

    @classmethod
    def on(cls, batches: Iterable[MicroBatch]) -> "Work":
        """Of some micro-batches."""
        real = [b for b in batches if not b.is_dummy]
        columns = ((b.num_tokens, b.num_computed_tokens, b.num_pairs, b.num_sequences, 1) for b in real)
        return cls(*(float(sum(column)) for column in zip(*columns, strict=True)))


Unit = Callable[[], Work]
"""one piece of work, such as an optimizer step: what this process worked on"""


@dataclass(frozen=True)
class Measured:
    """Every repetition of a unit: all processes' work, and the mean of their seconds.

    memory_bytes: the most that one process had.
    """

    seconds: list[float]
    cpu_seconds: list[float]
    work: list[Work]
    memory_bytes: float

    def per_second(self, kind: str) -> float:
        """Median over the repetitions, of "tokens" and so on."""
        return self._rate(kind, self.seconds)

    def per_cpu_second(self, kind: str) -> float:
        """The same by the seconds all threads of all processes computed."""
        return self._rate(kind, self.cpu_seconds)

    def _rate(self, kind: str, seconds: list[float]) -> float:
        rates = [getattr(w, kind) / s for w, s in zip(self.work, seconds, strict=True) if s > 0]
        return statistics.median(rates) if rates else 0.0

    @property
    def total(self) -> Work:
        """Of all repetitions."""
        return Work(*map(sum, zip(*self.work, strict=True)))


def warm_up(unit: Unit, accelerator: RunAccelerator, repeats: int) -> tuple[float, int]:
    """First times allocate, choose kernels, compile. Seconds of the last one, and bytes at the most."""
    memory, clock = PeakMemory(accelerator.device), Clock(accelerator.device)
    for _ in range(repeats):
        clock.run(unit)
    return clock.seconds()[-1], memory.bytes()


def repeats_within(accelerator: RunAccelerator, unit_s: float, measure_s: float) -> int:
    """How often a unit is repeated: all processes do it as often as the first one says."""
    repeats = [min(MAX_REPEATS, max(MIN_REPEATS, round(measure_s / max(unit_s, 1e-6))))]
    broadcast_object_list(repeats)
    return repeats[0]


def take_turns(units: Mapping[str, Unit], accelerator: RunAccelerator, repeats: int) -> dict[str, Measured]:
    """Every unit `repeats` times, in turns: a busy moment falls on all alike. Collective."""
    accelerator.wait_for_everyone()
    clocks = {name: Clock(accelerator.device) for name in units}
    work: dict[str, list[Work]] = {name: [] for name in units}
    memory = dict.fromkeys(units, 0)
    for _ in range(repeats):
        for name, unit in units.items():
            peak = PeakMemory(accelerator.device)
            work[name].append(clocks[name].run(unit))
            memory[name] = max(memory[name], peak.bytes())
    return {n: _together(accelerator, clocks[n], work[n], memory[n]) for n in units}


def measure(unit: Unit, accelerator: RunAccelerator, measure_s: float, warm_ups: int) -> Measured:
    """A unit by itself, for about `measure_s` seconds, 3 times at least. Collective."""
    unit_s, _ = warm_up(unit, accelerator, warm_ups)
    return take_turns({"": unit}, accelerator, repeats_within(accelerator, unit_s, measure_s))[""]


def _together(accelerator: RunAccelerator, clock: Clock, work: list[Work], memory: int) -> Measured:
    own = [[*w, s, c] for w, s, c in zip(work, clock.seconds(), clock.cpu_seconds(), strict=True)]
    rows = accelerator.reduce(torch.tensor(own, dtype=torch.float64, device=accelerator.device), "sum")
    peaks = accelerator.gather(torch.tensor([memory], dtype=torch.float64, device=accelerator.device))
    columns = rows.tolist()
    return Measured(
        seconds=[row[-2] / accelerator.num_processes for row in columns],
        cpu_seconds=[row[-1] for row in columns],
        work=[Work(*row[:-2]) for row in columns],
        memory_bytes=float(peaks.max()),
    )
