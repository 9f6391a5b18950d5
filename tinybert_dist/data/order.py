"""Which sample when: pure functions of (seed, epoch, step). World size, workers and prefetch never enter.

Optimizer step s takes rows [s * G, (s + 1) * G) of its epoch's order, G = batch_size; the last step of an
epoch takes what is left, so nothing is dropped. The order shuffles blocks of rows, then rows inside windows
of blocks: memory stays flat however large the corpus, any position is reached directly, and neighbouring
reads share pages.
"""

from dataclasses import dataclass

import numpy as np

BLOCK_ROWS = 1024
WINDOW_BLOCKS = 256  # 262,144 rows are shuffled together


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
        start = (step % self.steps_per_epoch) * self.batch_size
        return shuffled(
            self.num_rows, self.seed, self.epoch(step), start, min(self.batch_size, self.num_rows - start)
        )


def shuffled(num_rows: int, seed: int, epoch: int, start: int, count: int) -> np.ndarray:
    """Positions [start, start + count) of the shuffled order of `num_rows` rows in `epoch`."""
    num_blocks = -(-num_rows // BLOCK_ROWS)
    blocks = np.random.default_rng([seed, epoch, 0]).permutation(num_blocks)
    sizes = np.minimum(BLOCK_ROWS, num_rows - blocks * BLOCK_ROWS)
    ends = np.cumsum(sizes)
    pieces, position = [], start
    while position < start + count:
        window = int(np.searchsorted(ends, position, side="right")) // WINDOW_BLOCKS
        first, last = window * WINDOW_BLOCKS, min((window + 1) * WINDOW_BLOCKS, num_blocks)
        window_start = int(ends[first] - sizes[first])
        rows = _window_rows(num_rows, seed, epoch, window, tuple(blocks[first:last].tolist()))
        piece = rows[position - window_start : start + count - window_start]
        pieces.append(piece)
        position += len(piece)
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)


def _window_rows(num_rows: int, seed: int, epoch: int, window: int, blocks: tuple[int, ...]) -> np.ndarray:
    key = (num_rows, seed, epoch, window)
    if _last_window[0] != key:  # consecutive steps read the same window
        rows = np.concatenate(
            [np.arange(b * BLOCK_ROWS, min((b + 1) * BLOCK_ROWS, num_rows)) for b in blocks]
        )
        _last_window[:] = [key, np.random.default_rng([seed, epoch, 1, window]).permutation(rows)]
    return _last_window[1]


_last_window: list = [None, None]


def cut(lengths: np.ndarray, num_pieces: int, max_tokens: int | None) -> list[np.ndarray]:
    """Cuts one step's samples into micro-batches of nearly equal real tokens, short sequences first.

    Args:
        lengths: [n] tokens of each sample of the step.
        num_pieces: micro-batches wanted at least.
        max_tokens: more micro-batches are made until their mean is at most this many tokens (None: no limit).
    Returns:
        Index arrays into `lengths`; some are empty when there are fewer samples than pieces.
    """
    order = np.argsort(lengths, kind="stable")
    totals = np.cumsum(lengths[order])
    total = int(totals[-1]) if len(totals) else 0
    if max_tokens:
        num_pieces = max(num_pieces, -(-total // max_tokens))
    # a sample belongs to the piece its middle token falls into
    middles = totals - lengths[order] / 2
    piece = np.minimum((middles * num_pieces / max(total, 1)).astype(np.int64), num_pieces - 1)
    return [order[piece == p] for p in range(num_pieces)]
