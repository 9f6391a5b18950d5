"""What the processes of a step tell one another, in two small reductions, and the host reads in one go."""

import itertools
from collections import defaultdict
from typing import NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from tinybert_dist.config import UserError
from tinybert_dist.distill.modules import LossModule
from tinybert_dist.training.feed import Share
from tinybert_dist.training.heartbeat import beat
from tinybert_dist.training.strategy import RunAccelerator


class Totals(NamedTuple):
    """Sums over all processes of one optimizer step.

    denominators: of each loss term. counted: tokens, tokens with padding, and what the feed counts, in the
    order of `names`. Both are on the device. num_micro_batches: those every process computes.
    """

    denominators: dict[str, Tensor]
    counted: Tensor
    names: list[str]
    num_micro_batches: int


def add_up(accelerator: RunAccelerator, module: LossModule, share: Share, is_even: bool) -> Totals:
    """The first reduction: the loss's denominators, tokens, and how many micro-batches all will compute.

    is_even: every process is known to have as many; then nothing waits for the device. Otherwise raises, on
    all processes, the UserError with which one of them could not read its share.
    """
    groups: dict[str, float] = defaultdict(float)
    tokens = computed = 0
    for _, batch in share.micro_batches:
        for group, count in module.counts(batch).items():
            groups[group] += 0 if batch.is_dummy else count
        tokens += 0 if batch.is_dummy else batch.num_tokens
        computed += 0 if batch.is_dummy else batch.num_computed_tokens
    names = ["tokens", "computed", *share.counts]
    by_process = [0.0] * accelerator.num_processes
    by_process[accelerator.process_index] = -1.0 if share.refused else float(len(share.micro_batches))
    own = [*groups.values(), tokens, computed, *share.counts.values(), *by_process]
    beat("reduce")
    # made on the device itself, the host would wait for the optimizer step before
    vector = torch.tensor(own, dtype=torch.float64).to(accelerator.device, non_blocking=True)
    sums = accelerator.reduce(vector, "sum")
    by_group, counted, by_process_sums = sums.split([len(groups), len(names), len(by_process)])
    num_micro_batches = len(share.micro_batches)
    if share.refused or not is_even:
        numbers = by_process_sums.tolist()
        num_micro_batches = int(max(numbers))
        if min(numbers) < 0:
            raise _refusal(share, numbers.index(min(numbers)))
    by_name = dict(zip(groups, by_group.clamp(min=1), strict=True))
    terms = {term: by_name[term.split("/")[0]] for term in module.term_weights}
    return Totals(terms, counted, names, num_micro_batches)


def _refusal(share: Share, process: int) -> UserError:
    message = [str(share.refused)]
    broadcast_object_list(message, from_process=process)
    error = UserError(message[0])
    error.process = process  # type: ignore[attr-defined]
    return error


class Verdict(NamedTuple):
    """Of the step: losses by term, gradient norm, counts by name, processes with a loss that is not finite,
    processes asked to stop.
    """

    losses: dict[str, float]
    grad_norm: float
    counts: dict[str, float]
    bad_ranks: list[int]
    stop_ranks: list[int]


def agree(
    accelerator: RunAccelerator,
    module: LossModule,
    totals: Totals,
    loss_sums: Tensor,
    grad_norm: Tensor,
    stop: bool,
) -> Verdict:
    """The second reduction; loss_sums: float64 [terms] of this process, grad_norm: over all processes.

    Here the host waits for the device, once in a step: the optimizer must not move before it is known that
    all numbers are finite, nor may one process go on when another stops.
    """
    world_size, rank = accelerator.num_processes, accelerator.process_index
    flags = loss_sums.new_zeros(2, world_size)
    flags[0, rank] = (~loss_sums.isfinite()).any()
    flags[1, rank] = float(stop)
    reduced = accelerator.reduce(torch.cat([loss_sums, flags.flatten()]), "sum")
    numbers = iter(torch.cat([reduced, grad_norm.double().view(1), totals.counted]).tolist())
    sizes = len(module.term_weights), world_size, world_size, 1, len(totals.names)
    losses, bad, stopped, norm, counts = (list(itertools.islice(numbers, size)) for size in sizes)
    return Verdict(
        dict(zip(module.term_weights, losses, strict=True)),
        norm[0],
        dict(zip(totals.names, counts, strict=True)),
        [rank for rank, flag in enumerate(bad) if flag],
        [rank for rank, flag in enumerate(stopped) if flag],
    )
