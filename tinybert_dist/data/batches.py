"""Samples -> micro-batches. Item s of `StepBatches` is what this rank computes in optimizer step s."""

import ctypes
import itertools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tinybert_dist.config import StageFailed
from tinybert_dist.data.order import Order, cut
from tinybert_dist.data.tokens import Sample, TokenDataset
from tinybert_dist.micro_batch import MicroBatch

PR_SET_PDEATHSIG = 1  # of Linux' prctl
SAVING_S = 60  # a worker lives on this long after SIGTERM
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

    def __call__(
        self, samples: Sequence[Sample], token_labels: Sequence[np.ndarray] | None = None
    ) -> MicroBatch:
        """B samples (at least one) -> MicroBatch."""
        lengths = np.array([len(s.input_ids) for s in samples], dtype=np.int64)
        longest = self.max_length if self.layout == "fixed" else int(lengths.max())
        positions = _ranges(lengths)
        sequence = np.repeat(np.arange(len(samples)), lengths)
        block_index = torch.from_numpy(sequence * longest + positions)
        segments = positions >= np.repeat([s.segment_b for s in samples], lengths)
        flat = {
            "input_ids": np.concatenate([s.input_ids for s in samples]).astype(np.int64),
            "token_type_ids": segments.astype(np.int64),
        }
        if token_labels is not None:
            flat["token_labels"] = np.concatenate(token_labels)
        tensors: dict[str, Any] = {name: torch.from_numpy(values) for name, values in flat.items()}
        if self.layout == "packed":
            tensors = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
            tensors["position_ids"] = torch.from_numpy(positions).unsqueeze(0)
            tensors["block_index_T"] = block_index
            starts = np.cumsum(lengths) - lengths
            if (lengths < longest).any():
                tensors["block_mask"] = torch.from_numpy(np.arange(longest) < lengths[:, None])[:, None, None]
        else:
            fill = {"input_ids": self.pad_token_id, "token_type_ids": 0, "token_labels": -100}
            tensors = {
                n: _to_blocks(t, block_index, (len(samples), longest), fill[n]) for n, t in tensors.items()
            }
            tensors["attention_mask"] = torch.from_numpy(
                (np.arange(longest) < lengths[:, None]).astype(np.int64)
            )
            starts = np.arange(len(samples)) * longest
        labels = [np.nan if s.label is None else s.label for s in samples]
        return MicroBatch(
            **tensors,
            rows_B=torch.tensor([s.row for s in samples], dtype=torch.int64),
            labels_B=torch.tensor(labels, dtype=torch.float64),
            starts_B=torch.from_numpy(starts),
            num_tokens=int(lengths.sum()),
            num_pairs=int((lengths**2).sum()),
            max_length=longest,
            num_token_labels=0 if token_labels is None else int((flat["token_labels"] != -100).sum()),
        )


def _ranges(lengths: np.ndarray) -> np.ndarray:
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


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

    def __len__(self) -> int:
        return self.order.steps_per_epoch

    def __getitem__(self, step: int) -> list[tuple[int, MicroBatch]]:
        rows = self.order.rows(step)
        pieces = cut(self.dataset.lengths[rows], self.num_micro_batches, self.max_tokens)
        per_rank = -(-len(pieces) // self.world_size)
        mine = [self.rank + i * self.world_size for i in range(per_rank)]
        return [(m, self._micro_batch(step, rows, pieces[m] if m < len(pieces) else rows[:0])) for m in mine]

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
        return self.collate([p[0] for p in pairs], [p[1] for p in pairs])

    def loader(
        self, first_step: int, num_steps: int, *, num_workers: int, pin_memory: bool, timeout_s: float = 300
    ) -> Iterator:
        """Steps [first_step, num_steps), prefetched by workers; order and content do not depend on them.

        Raises WorkerFailed when a worker dies, or needs more than timeout_s for a step.
        """
        batches = iter(
            DataLoader(
                self,
                sampler=range(first_step, num_steps),
                batch_size=None,
                num_workers=num_workers,
                pin_memory=pin_memory,
                timeout=timeout_s if num_workers else 0,
                worker_init_fn=_serve_until_told if num_workers else None,
                generator=torch.Generator(),  # else creating the iterator moves the global random state
            )
        )
        return _named(batches, first_step) if num_workers else batches


def _named(batches: Any, first_step: int) -> Iterator:
    for step in itertools.count(first_step):
        try:
            yield next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            number = (step - first_step) % len(batches._workers)  # they take turns
            late = f"step {step + 1}: the batch of loader worker {number} did not come. "
            raise worker_failure(error, late) or error from error


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
    rows = range(len(dataset)) if rows is None else rows
    if len(rows) == 0:
        return
    lengths = dataset.lengths[rows.start : rows.stop]
    pieces = [rows.start + piece for piece in cut(lengths, 1, max_tokens) if len(piece)]
    for m in range(rank, -(-len(pieces) // world_size) * world_size, world_size):
        if m < len(pieces):
            yield collate(dataset.fetch(pieces[m]))
        else:
            yield replace(collate(dataset.fetch(pieces[-1][:1])), is_dummy=True)


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
