"""What the processes of a step tell one another, in two small reductions."""

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

    denominators: of each loss term, on the device. counted: tokens, tokens with padding, and what the feed
    counts; on the device, for `counts`. num_micro_batches: those every process computes.
    """

    denominators: dict[str, Tensor]
    counted: Tensor
    names: list[str]
    num_micro_batches: int

    def counts(self) -> dict[str, float]:
        """The counts by name; waits for the device."""
        return dict(zip(self.names, self.counted.tolist(), strict=True))


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
    sums = accelerator.reduce(torch.tensor(own, dtype=torch.float64, device=accelerator.device), "sum")
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
    """Losses of the step by term, processes with one that is not finite, processes asked to stop."""

    losses: dict[str, float]
    bad_ranks: list[int]
    stop_ranks: list[int]


def agree(accelerator: RunAccelerator, module: LossModule, loss_sums: Tensor, stop: bool) -> Verdict:
    """The second reduction; loss_sums: float64 [terms] of this process."""
    world_size, rank = accelerator.num_processes, accelerator.process_index
    flags = loss_sums.new_zeros(2, world_size)
    flags[0, rank] = (~loss_sums.isfinite()).any().double()
    flags[1, rank] = float(stop)
    vector = accelerator.reduce(torch.cat([loss_sums, flags.flatten()]), "sum").tolist()
    names = list(module.term_weights)
    bad, stopped = vector[len(names) : len(names) + world_size], vector[len(names) + world_size :]
    return Verdict(
        dict(zip(names, vector, strict=False)),
        [rank for rank, flag in enumerate(bad) if flag],
        [rank for rank, flag in enumerate(stopped) if flag],
    )
