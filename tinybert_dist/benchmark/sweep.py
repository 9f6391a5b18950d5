"""Which micro-batch size is the fastest, and what dividing a step into more of them costs."""

import gc
import math
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from tinybert_dist.benchmark.measure import Measured, repeats_within, take_turns, warm_up
from tinybert_dist.benchmark.options import BenchmarkOptions
from tinybert_dist.benchmark.steps import Steps, loop_of
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.training.feed import PreparedFeed
from tinybert_dist.training.job import Job
from tinybert_dist.training.loop import TrainingLoop

WORTH_IT = 1.03  # repeated measurements differ by less
FINER = 4
ACCUMULATION = 0  # the key of the step cut finer, among those of micro-batch sizes


def sweep(job: Job, options: BenchmarkOptions) -> dict[str, Any]:
    """Steps of a job with other micro-batch sizes, the default one among them, taking turns. The first size
    that memory does not hold ends the search. Also the same step in 4 times the micro-batches. Collective.
    """
    loop = loop_of(job)
    default, step_tokens = loop.feed.constants["micro_batch_tokens"], _step_tokens(loop)
    finer = {"gradient_accumulation_steps": options.gradient_accumulation_steps * FINER}
    changes = (
        {ACCUMULATION: finer} if finer["gradient_accumulation_steps"] <= options.train_batch_size else {}
    )
    asked = options.candidates(job.accelerator.device.type)
    changes |= {size: {"micro_batch_tokens": size} for size in _that_differ(loop, asked)}
    feeds = {size: _feed(job, changes[size]) for size in sorted(changes)}
    units = {size: Steps(loop, feed) for size, feed in feeds.items()}
    seconds: dict[int, float] = {}
    for size, feed in feeds.items():
        step_s = _first_steps(loop, units[size], feed, options.warm_up_steps)
        if step_s is None:
            break
        seconds[size] = step_s
    too_large = [size for size in feeds if size and size not in seconds]
    result = {"default": default, "step_tokens": step_tokens, "sizes": [], "too_large": too_large}
    if not seconds.keys() - {ACCUMULATION}:
        return result
    repeats = repeats_within(job.accelerator, max(seconds.values()), options.measure_s)
    measured = take_turns({str(s): units[s] for s in seconds}, job.accelerator, repeats)
    rows = [_row(size, measured[str(size)]) for size in seconds if size != ACCUMULATION]
    result["sizes"] = rows
    if ACCUMULATION in seconds and any(row["micro_batch_tokens"] == default for row in rows):
        result["accumulation"] = _accumulation(measured[str(ACCUMULATION)], measured[str(default)])
    return result | _choice(rows, default)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device, or this machine, had no room for something."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error)


def clear_memory() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _that_differ(loop: TrainingLoop, asked: list[int]) -> list[int]:
    """The sizes that cut a step differently, the default rather than its equals: many exceed a small step."""
    constants, step_tokens = loop.feed.constants, _step_tokens(loop)
    default, least = constants["micro_batch_tokens"], constants["num_micro_batches"]
    by_cut: dict[int, int] = {}
    for size in [default, *asked]:
        by_cut.setdefault(max(least, math.ceil(step_tokens / size)), size)
    return sorted(by_cut.values())


def _step_tokens(loop: TrainingLoop) -> float:
    dataset = loop.job.dataset
    assert isinstance(dataset, TokenDataset)
    return dataset.num_tokens * loop.options.train_batch_size / len(dataset)


def _feed(job: Job, changes: dict[str, Any]) -> PreparedFeed:
    return PreparedFeed(replace(job, options=replace(job.options, **changes)), None)


def _first_steps(loop: TrainingLoop, unit: Steps, feed: PreparedFeed, repeats: int) -> float | None:
    """Seconds of a step; None when a process has no memory for it. Collective."""
    accelerator, step_s = loop.accelerator, 0.0
    is_alone = accelerator.num_processes == 1
    try:
        if is_alone:
            step_s, _ = warm_up(unit, accelerator, repeats)
        else:
            _largest_alone(loop, feed)
        failed = False
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failed = True  # cleared below: the error holds what was computed so far
    if failed:
        loop.trained.optimizer.zero_grad()
        clear_memory()
    if accelerator.reduce(torch.tensor(float(failed), device=accelerator.device), "sum") > 0:
        return None
    return step_s if is_alone else warm_up(unit, accelerator, repeats)[0]


def _largest_alone(loop: TrainingLoop, feed: PreparedFeed) -> None:
    """Forward and backward of this process's largest micro-batch: in a real step the others would wait for
    one that has no memory. (They do where strategy or teacher gather weights in a forward.)
    """
    _, largest = max(next(feed.shares(0, 1)).micro_batches, key=lambda pair: pair[1].num_computed_tokens)
    batch = largest.to(loop.accelerator.device)
    with loop.trained.micro_batch(is_last=False):
        sums = loop.trained(batch, loop.job.targets(batch))
        loop.trained.backward(torch.stack(list(sums.values())).sum())
    loop.trained.optimizer.zero_grad()


def _row(size: int, measured: Measured) -> dict[str, Any]:
    return {
        "micro_batch_tokens": size,
        "micro_batches": measured.total.micro_batches / len(measured.work),
        "tokens_per_s": measured.per_second("tokens"),
        "memory_bytes": measured.memory_bytes,
    }


def _accumulation(finer: Measured, default: Measured) -> dict[str, float]:
    counts = [m.total.micro_batches / len(m.work) for m in (default, finer)]
    cost = default.per_second("tokens") / finer.per_second("tokens") - 1
    return {"micro_batches": counts[0], "finer_micro_batches": counts[1], "cost": cost}


def _choice(rows: list[dict[str, Any]], default: int) -> dict[str, Any]:
    rates = {row["micro_batch_tokens"]: row["tokens_per_s"] for row in rows}
    best = max(rates, key=lambda size: rates[size])
    if default not in rates:
        return {"best": best, "speedup": None, "use": best}
    speedup = rates[best] / rates[default]
    return {"best": best, "speedup": speedup, "use": best if speedup >= WORTH_IT else default}
