"""Which sample when: pure functions of (seed, epoch, step). World size, workers and prefetch never enter.

Optimizer step s takes rows [s * G, (s + 1) * G) of its epoch's order, G = batch_size; the last step of an
epoch takes what is left, so nothing is dropped. The order cuts the rows into blocks, the blocks into windows,
and shuffles the rows of a window: memory stays flat however large the corpus, any position is reached
directly, and the pages of a window are read together. A window takes one block out of every stretch of the
corpus, so that it resembles the whole even where the corpus is sorted.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

BLOCK_ROWS = 1024
WINDOW_BLOCKS = 1024  # about a million rows are shuffled together


@dataclass(frozen=True)
class Order:
    """The order of `num_rows` samples in steps of `batch_size`."""

    num_rows: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over all rows; the last may be short."""
        return -(-self.num_rows // self.batch_size)

    def epoch(self, step: int) -> int:
        """0-based epoch of a 0-based step."""
        return step // self.steps_per_epoch

    def rows(self, step: int) -> np.ndarray:
        """Dataset rows [<= batch_size] of optimizer step `step` (0-based)."""
        pieces = [_rows(window)[first:last] for window, first, last in self.pieces(step)]
        return np.concatenate(pieces, dtype=np.int64)

    def pieces(self, step: int) -> "list[tuple[Window, int, int]]":
        """Where the rows of `step` lie: in which windows, and at which positions [first, last) of each."""
        epoch, number = divmod(step, self.steps_per_epoch)
        start, stop = number * self.batch_size, min((number + 1) * self.batch_size, self.num_rows)
        _, ends = _cut_rows(self.num_rows, self.seed, epoch)
        pieces = []
        while start < stop:
            n = int(np.searchsorted(ends, start, side="right"))
            window_start, window_end = int(ends[n - 1]) if n else 0, int(ends[n])
            window = Window(self.num_rows, self.seed, epoch, n)
            pieces.append((window, start - window_start, min(stop, window_end) - window_start))
            start = window_end
        return pieces

    def upcoming_blocks(self, step: int) -> list[range]:
        """The share of the next window's blocks that is to be read from the disk during `step`.

        The steps of a window together name every block of the next one once; none where there is one window.
        """
        found: list[range] = []
        for window, first, last in self.pieces(step):
            coming = window.following()
            if coming.number != window.number:
                blocks, size = _blocks(coming), len(_rows(window))
                found += blocks[len(blocks) * first // size : len(blocks) * last // size]
        return found


class Window(NamedTuple):
    """Rows that are shuffled together: one block from every stretch of the corpus."""

    num_rows: int  # of the whole dataset
    seed: int
    epoch: int
    number: int  # in the epoch

    def blocks(self) -> list[range]:
        """Its rows as they lie in the dataset."""
        return list(_blocks(self))

    def shuffled(self, values: np.ndarray) -> np.ndarray:
        """Values of its rows, given block after block, in the order of the epoch."""
        return np.random.default_rng([self.seed, self.epoch, 1, self.number]).permutation(values)

    def following(self) -> "Window":
        """The next one, in the next epoch after the last."""
        _, ends = _cut_rows(self.num_rows, self.seed, self.epoch)
        epochs, number = divmod(self.number + 1, len(ends))
        return self._replace(epoch=self.epoch + epochs, number=number)


@lru_cache(maxsize=2)  # the last steps of an epoch ask for the next one too
def _cut_rows(num_rows: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Block numbers [stretch, window], some after the last block, and the position where each window ends."""
    num_blocks = -(-num_rows // BLOCK_ROWS)
    num_windows = -(-num_blocks // WINDOW_BLOCKS)
    num_stretches = -(-num_blocks // num_windows)
    draw = np.random.default_rng([seed, epoch, 0])
    sequence = draw.permutation(num_stretches)
    stretches = np.arange(num_stretches * num_windows, dtype=np.int32).reshape(num_stretches, num_windows)
    numbers = draw.permuted(stretches, axis=1)[sequence]
    sizes = np.clip(num_rows - numbers * np.int64(BLOCK_ROWS), 0, BLOCK_ROWS)
    return numbers, np.cumsum(sizes.sum(axis=0))


@lru_cache(maxsize=2)  # a step may end in the window after the one it begins in
def _blocks(window: Window) -> tuple[range, ...]:
    numbers, _ = _cut_rows(window.num_rows, window.seed, window.epoch)
    starts = (numbers[:, window.number] * np.int64(BLOCK_ROWS)).tolist()
    return tuple(range(i, min(i + BLOCK_ROWS, window.num_rows)) for i in starts if i < window.num_rows)


@lru_cache(maxsize=2)
def _rows(window: Window) -> np.ndarray:
    integer = np.uint32 if window.num_rows <= 1 << 32 else np.int64  # 4 MB rather than 8, in every process
    blocks = [np.arange(block.start, block.stop, dtype=integer) for block in _blocks(window)]
    return window.shuffled(np.concatenate(blocks))


def cut(lengths: np.ndarray, num_pieces: int, max_tokens: int | None) -> list[np.ndarray]:
    """Cuts one step's samples into micro-batches of nearly equal real tokens, short sequences first.

    Args:
        lengths: [n] tokens of each sample of the step.
        num_pieces: micro-batches wanted at least.
        max_tokens: more micro-batches are made until their mean is at most this many tokens (None: no limit).
    Returns:
        Index arrays into `lengths`; some are empty when there are fewer samples than pieces.
    """
    # a stable sort of integers this short goes by digits: 13 times faster
    order = np.argsort(lengths.astype(np.min_scalar_type(lengths.max(initial=0))), kind="stable")
    totals = np.cumsum(lengths[order])
    total = int(totals[-1]) if len(totals) else 0
    if max_tokens:
        num_pieces = max(num_pieces, -(-total // max_tokens))
    # a sample belongs to the piece its middle token falls into
    middles = totals - lengths[order] / 2
    piece = np.minimum((middles * num_pieces / max(total, 1)).astype(np.int64), num_pieces - 1)
    ends = np.searchsorted(piece, np.arange(num_pieces), side="right").tolist()  # they ascend
    return [order[first:last] for first, last in zip([0, *ends], ends, strict=False)]
