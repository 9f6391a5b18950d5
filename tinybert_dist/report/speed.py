"""Latency and throughput of several models at several lengths and batch sizes, measured side by side.

Shapes: B texts, S tokens of each.
"""

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tinybert_dist.config import HfArg, UserError

MIN_REPEATS = 3
WARM_UP = 2  # first calls allocate and choose kernels

Call = Callable[[], object]
Runner = Callable[[Tensor], Call]
"""binds a batch of ids [B, S]: the call computes its logits and returns when they are there"""


@dataclass(kw_only=True)
class SpeedOptions:
    """At which sizes speed is measured, and for how long."""

    length_tokens: list[int] = field(
        default_factory=lambda: [32, 128], metadata={"help": "tokens per text when speed is measured"}
    )
    batch_size: list[int] = field(
        default_factory=lambda: [1, 8, 32], metadata={"help": "texts per batch when speed is measured"}
    )
    repeats: int = HfArg(default=50, help="times each model is timed at each size, the models taking turns")
    measure_s: float = HfArg(default=1.0, help="seconds for one size, all models together; 3 times at least")

    def check(self) -> None:
        """Raises UserError for what cannot be measured."""
        for name in ("length_tokens", "batch_size", "repeats"):
            value = getattr(self, name)
            if value == [] or min(value if isinstance(value, list) else [value]) < 1:
                raise UserError(f"--{name} {_words(value)}: give numbers of at least 1.")


def lengths_within(options: SpeedOptions, num_positions: int) -> list[int]:
    """The lengths asked for that every model can read, shortest first; says which are left out."""
    lengths = sorted(set(options.length_tokens))
    fitting = [length for length in lengths if length <= num_positions]
    if not fitting:
        raise UserError(
            f"--length_tokens {_words(lengths)}: the models have {num_positions} positions, give less."
        )
    if left_out := lengths[len(fitting) :]:
        print(f"speed: {num_positions} positions here, so none is timed at {_words(left_out)} tokens")
    return fitting


def measure_speed(
    runners: Mapping[str, Runner], options: SpeedOptions, *, lengths: Sequence[int], vocab_size: int
) -> dict[str, list[dict[str, Any]]]:
    """Per runner one entry for each length and batch size: latency_ms {p50, p95}, throughput_per_s.

    The runners take turns within every repeat: a busy moment of the machine falls on all of them alike.
    """
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in runners}
    generator = torch.Generator().manual_seed(0)
    for length in lengths:
        for batch_size in sorted(set(options.batch_size)):
            ids_BS = torch.randint(
                min(5, vocab_size - 1), vocab_size, (batch_size, length), generator=generator
            )
            calls = {name: bind(ids_BS) for name, bind in runners.items()}
            seconds = take_turns(calls, options.repeats, options.measure_s)
            for name, values in seconds.items():
                p50, p95 = statistics.median(values), quantile(values, 0.95)
                entries[name].append(
                    {
                        "length_tokens": length,
                        "batch_size": batch_size,
                        "latency_ms": {"p50": round(1e3 * p50, 3), "p95": round(1e3 * p95, 3)},
                        "throughput_per_s": round(batch_size / p50, 1),
                        "repeats": len(values),
                    }
                )
    return entries


def of_torch(model: PreTrainedModel) -> Runner:
    """A transformers model in eval mode, on its device."""
    model.eval()

    def bind(ids_BS: Tensor) -> Call:
        ids_BS = ids_BS.to(model.device)
        mask_BS = torch.ones_like(ids_BS)

        def call() -> None:
            with torch.inference_mode():
                model(input_ids=ids_BS, attention_mask=mask_BS)
            if ids_BS.is_cuda:
                torch.cuda.synchronize(ids_BS.device)

        return call

    return bind


def of_logits(classify: Callable[[Tensor, Tensor, Tensor], object]) -> Runner:
    """A function of ids, mask and segments on the CPU."""

    def bind(ids_BS: Tensor) -> Call:
        mask_BS, segments_BS = torch.ones_like(ids_BS), torch.zeros_like(ids_BS)
        return lambda: classify(ids_BS, mask_BS, segments_BS)

    return bind


def take_turns(calls: Mapping[str, Call], repeats: int, limit_s: float) -> dict[str, list[float]]:
    """Seconds of every call, `repeats` of each, or as many (3 at least) as have begun before limit_s.

    In an order drawn anew for every repeat: behind a large model a small one finds cold caches, and of two
    equal ones that which always came next to it was 18 % slower.
    """
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order, draw = list(calls.items()), random.Random(0)
    ends_at = time.perf_counter() + limit_s
    for number in range(max(repeats, 1)):
        if number >= MIN_REPEATS and time.perf_counter() > ends_at:
            break
        draw.shuffle(order)
        for name, call in order:
            started_at = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started_at)
    return seconds


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the sorted values lie, without interpolation."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def hardware(device: torch.device) -> dict[str, Any]:
    """What the speed was measured on: processor or GPU, threads, versions; nothing that names the machine."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def describe_hardware(facts: Mapping[str, Any]) -> str:
    """The same in words."""
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"
    return f"{facts['device']}, {threads}, torch {facts['torch']}, Python {facts['python']}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _words(values: Any) -> str:
    return " ".join(map(str, values)) if isinstance(values, list) else str(values)
