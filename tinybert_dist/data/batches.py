"""Samples -> micro-batches. Item s of `StepBatches` is what this rank computes in optimizer step s."""

import ctypes
import itertools
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tinybert_dist.config import StageFailed
from tinybert_dist.data.length_groups import group_bounds
from tinybert_dist.data.order import Order, Window, cut
from tinybert_dist.data.tokens import Sample, Samples, TokenDataset
from tinybert_dist.micro_batch import MicroBatch

PR_SET_PDEATHSIG = 1  # of Linux' prctl
EVALUATED_ROWS = 1 << 18  # sorted by length together: memory stays flat however large the data
SAVING_S = 60  # a worker lives on this long after SIGTERM
REPORTED_S = 5  # within which torch reports a worker's death
Layout = Literal["packed", "padded", "fixed"]
SampleTransform = Callable[[Sample, np.random.Generator], tuple[Sample, np.ndarray]]


class WorkerFailed(StageFailed):
    """A process that prefetches batches died or hangs."""


@dataclass(frozen=True)
class Collator:
    """Turns samples into one MicroBatch.

    layout: "packed" one row of real tokens; "padded" to the longest of the micro-batch; "fixed" to max_length
    (the reference's layout, needed for its pad-inclusive averages).
    """

    layout: Layout
    pad_token_id: int
    max_length: int = 0

    def __call__(self, samples: Samples, token_labels: Sequence[np.ndarray] | None = None) -> MicroBatch:
        """B samples (at least one) -> MicroBatch."""
        lengths, starts = samples.lengths, samples.starts
        longest = self.max_length if self.layout == "fixed" else int(lengths.max())
        positions = np.arange(len(samples.ids)) - np.repeat(starts, lengths)
        bounds = group_bounds(lengths) if self.layout == "packed" else [(0, len(samples))]
        groups = [lengths[first:last] for first, last in bounds]
        widths = [int(group.max()) for group in groups] if self.layout == "packed" else [longest]
        block_lengths = np.repeat(widths, [len(group) for group in groups])
        block_starts = np.cumsum(block_lengths) - block_lengths
        block_index = torch.from_numpy(np.repeat(block_starts, lengths) + positions)
        segments = positions >= np.repeat(samples.segment_b, lengths)
        flat = {"input_ids": samples.ids, "token_type_ids": segments.astype(np.int64)}
        if token_labels is not None:
            flat["token_labels"] = np.concatenate(token_labels)
        tensors: dict[str, Any] = {name: torch.from_numpy(values) for name, values in flat.items()}
        if self.layout == "packed":
            tensors = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
            tensors["position_ids"] = torch.from_numpy(positions).unsqueeze(0)
            tensors["block_index_T"] = block_index
            tensors["block_masks"] = tuple(map(_block_mask, groups))
            tensors["block_shapes"] = tuple((len(g), w) for g, w in zip(groups, widths, strict=True))
        else:
            fill = {"input_ids": self.pad_token_id, "token_type_ids": 0, "token_labels": -100}
            tensors = {
                n: _to_blocks(t, block_index, (len(samples), longest), fill[n]) for n, t in tensors.items()
            }
            tensors["attention_mask"] = torch.from_numpy(
                (np.arange(longest) < lengths[:, None]).astype(np.int64)
            )
            starts = block_starts
        return MicroBatch(
            **tensors,
            rows_B=torch.from_numpy(samples.rows),
            labels_B=torch.from_numpy(samples.labels),
            starts_B=torch.from_numpy(starts),
            num_tokens=int(lengths.sum()),
            num_pairs=int((lengths**2).sum()),
            max_length=longest,
            num_token_labels=0 if token_labels is None else int((flat["token_labels"] != -100).sum()),
        )


def _block_mask(lengths: np.ndarray) -> torch.Tensor | None:
    """Bool [B, 1, 1, S] where a block has tokens; None when it has no padding."""
    longest = lengths.max()
    if (lengths == longest).all():
        return None
    return torch.from_numpy(np.arange(longest) < lengths[:, None])[:, None, None]


def _to_blocks(flat: torch.Tensor, index: torch.Tensor, shape: tuple[int, int], fill: int) -> torch.Tensor:
    return flat.new_full((shape[0] * shape[1],), fill).index_copy(0, index, flat).view(shape)


@dataclass
class StepBatches(Dataset):
    """Item s: this rank's micro-batches of optimizer step s, the same number on every rank.

    num_micro_batches is a constant of the run, chosen at its first start, so that the cut, and with it every
    draw keyed by (seed, step, micro-batch), stays the same when the run continues on another world size.
    """

    dataset: TokenDataset
    order: Order
    collate: Collator
    num_micro_batches: int
    max_tokens: int | None
    rank: int
    world_size: int
    transform: SampleTransform | None = None
    _window_lengths: dict[Window, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return self.order.steps_per_epoch

    def __getitem__(self, step: int) -> list[tuple[int, MicroBatch]]:
        rows = self.order.rows(step)
        self.dataset.read_ahead(self.order.upcoming_blocks(step))
        pieces = cut(self._lengths(step), self.num_micro_batches, self.max_tokens)
        per_rank = -(-len(pieces) // self.world_size)
        # in turns: the pieces of short rows, which cost a loader most, are not always the same process's
        first = (self.rank + step) % self.world_size
        mine = range(first, per_rank * self.world_size, self.world_size)
        return [(m, self._micro_batch(step, rows, pieces[m] if m < len(pieces) else rows[:0])) for m in mine]

    def _lengths(self, step: int) -> np.ndarray:
        """Tokens of the rows of `step`: for every process's, so read by windows rather than row by row."""
        pieces, known = self.order.pieces(step), self._window_lengths
        self._window_lengths = {
            w: known[w] if w in known else w.shuffled(self.dataset.lengths_in(w.blocks()))
            for w, _, _ in pieces
        }
        return np.concatenate([self._window_lengths[w][first:last] for w, first, last in pieces])

    def _micro_batch(self, step: int, rows: np.ndarray, piece: np.ndarray) -> MicroBatch:
        if len(piece) == 0:
            dummy = self._collate(step, rows[:1])
            return replace(dummy, is_dummy=True)
        return self._collate(step, rows[piece])

    def _collate(self, step: int, rows: np.ndarray) -> MicroBatch:
        samples = self.dataset.fetch(rows)
        if self.transform is None:
            return self.collate(samples)
        epoch = self.order.epoch(step)
        pairs = [
            self.transform(s, np.random.default_rng([self.order.seed, epoch, 2, s.row])) for s in samples
        ]
        return self.collate(Samples.of([p[0] for p in pairs]), [p[1] for p in pairs])

    def loader(
        self, first_step: int, num_steps: int, *, num_workers: int, pin_memory: bool, timeout_s: float = 300
    ) -> Iterator:
        """Steps [first_step, num_steps), prefetched by workers; order and content do not depend on them.

        Raises WorkerFailed when a worker dies, or needs more than timeout_s for a step.
        """
        for window, _, _ in self.order.pieces(first_step):
            self.dataset.read_ahead(window.blocks() + window.following().blocks())
        return prefetched(
            self,
            first_step,
            sampler=range(first_step, num_steps),
            num_workers=num_workers,
            pin_memory=pin_memory,
            timeout_s=timeout_s,
        )


def prefetched(
    dataset: Dataset,
    first_step: int,
    *,
    sampler: Iterable | None = None,
    num_workers: int,
    pin_memory: bool = False,
    timeout_s: float = 300,
    items_per_step: int = 1,
    items_ahead: int = 2,
) -> Generator:
    """The items of a dataset, made by workers that take turns, or without any; closing it ends them.

    Raises WorkerFailed when a worker dies, or needs more than timeout_s for an item.
    """
    items = iter(
        DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            timeout=timeout_s if num_workers else 0,
            prefetch_factor=items_ahead if num_workers else None,
            worker_init_fn=_serve_until_told if num_workers else None,
            generator=torch.Generator(),  # else creating the iterator moves the global random state
        )
    )
    return _named(items, num_workers, first_step, items_per_step)


def _named(items: Iterator, num_workers: int, first_step: int, items_per_step: int) -> Generator:
    for i in itertools.count():
        try:
            yield _next(items) if num_workers else next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if not num_workers:
                raise
            step, number = first_step + i // items_per_step, i % num_workers
            late = f"step {step + 1}: the batch of loader worker {number} did not come. "
            raise worker_failure(error, late) or error from error


def _next(items: Iterator) -> Any:
    try:
        return next(items)
    except (ConnectionError, EOFError):
        # its worker died while handing it over: torch's report, which names the worker, ends the sleep
        time.sleep(REPORTED_S)
        raise


def worker_failure(error: Exception, what: str = "") -> WorkerFailed | None:
    """torch's report of a dead or late worker in our words, else None. A death interrupts any code."""
    if not isinstance(error, RuntimeError) or not str(error).startswith("DataLoader "):
        return None  # such as the worker's own error, which has its traceback
    return WorkerFailed(
        f"{what}{str(error).strip()} Killed workers are often out of memory: lower --num_workers (0: none), "
        "then the same command resumes."
    )


def _serve_until_told(worker: int) -> None:
    if sys.platform == "linux":  # one that hangs would outlive its process
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C and Slurm signal every process of the job: a worker that died of it would take the run along
    # before it has saved
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SAVING_S))


def evaluation_batches(
    dataset: TokenDataset,
    collate: Collator,
    max_tokens: int,
    rank: int,
    world_size: int,
    rows: range | None = None,
) -> Iterator[MicroBatch]:
    """Every row of `rows` (None: of all) on exactly one rank, in micro-batches of like lengths, ~max_tokens.

    Every rank gets as many: where there are none left, a dummy (a sharded model computes in step).
    """
    rows, count = range(len(dataset)) if rows is None else rows, 0
    for start in range(rows.start, rows.stop, EVALUATED_ROWS):
        span = range(start, min(start + EVALUATED_ROWS, rows.stop))
        dataset.read_ahead([span])
        for piece in cut(dataset.lengths_in([span]), 1, max_tokens):
            if len(piece) and count % world_size == rank:
                yield collate(dataset.fetch(start + piece))
            count += len(piece) > 0
    if 0 < count % world_size <= rank:
        yield replace(collate(dataset.fetch(rows[:1])), is_dummy=True)


def delivery_rate(batches: StepBatches, seconds: float) -> float:
    """Real tokens per second that this process gets ready by itself, measured for at least `seconds`."""
    num_tokens, step, elapsed_s, started = 0, 0, 0.0, time.perf_counter()
    while step == 0 or elapsed_s < seconds:
        num_tokens += sum(batch.num_tokens for _, batch in batches[step] if not batch.is_dummy)
        step, elapsed_s = step + 1, time.perf_counter() - started
    return num_tokens / elapsed_s


def draw_seed(*key: int) -> int:
    """A 63-bit seed that is a pure function of a key such as (seed, step, micro-batch)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def masked_language_model(
    mask_token_id: int, vocab_size: int, special_ids: Sequence[int], probability: float = 0.15
) -> SampleTransform:
    """BERT's masking (arXiv 1810.04805, 3.1): of the chosen tokens 80 % [MASK], 10 % random, 10 % kept."""
    special = np.array(sorted(special_ids))

    def transform(sample: Sample, rng: np.random.Generator) -> tuple[Sample, np.ndarray]:
        candidates = np.flatnonzero(~np.isin(sample.input_ids, special))
        count = min(len(candidates), max(1, round(len(candidates) * probability)))
        chosen = rng.choice(candidates, size=count, replace=False)
        labels = np.full(len(sample.input_ids), -100, dtype=np.int64)
        labels[chosen] = sample.input_ids[chosen]
        draw = rng.random(len(chosen))
        input_ids = sample.input_ids.copy()
        input_ids[chosen[draw < 0.8]] = mask_token_id
        randomised = chosen[draw >= 0.9]
        input_ids[randomised] = rng.integers(0, vocab_size, size=len(randomised))
        return sample._replace(input_ids=input_ids), labels

    return transform
