"""Which rows of a stream when: pure functions of (weights, seed, step). No files, no processes.

The pieces of a corpus are dealt to lanes once. A lane reads its pieces in an order drawn anew for every
epoch, and goes on for ever: when its pieces are through, its next epoch begins. A step takes rows of all
lanes in proportion to their weights, so that lanes end their epochs together. World size, workers and
prefetch never enter: whoever reads a lane reads the same rows.
"""

from collections.abc import Sequence

import numpy as np

LANES = 96  # divides by 1, 2, 3, 4, 6, 8, 12, 16, 24, 32
MAX_GROUPS = 32
DECK_DRAWS = 1 << 17
ALIKE = 0.03  # weights that differ by less count as equal
WINDOW_ROWS = 1 << 17  # shuffled together, over all lanes
MIN_BLOCK_ROWS, MAX_BLOCK_ROWS = 512, 8192
GOLDEN_RATIO = (5**0.5 - 1) / 2  # the fractional parts of its multiples spread evenly


def num_lanes(num_groups: int) -> int:
    """Lanes of a run whose steps are cut into `num_groups` groups of lanes.

    The same for up to 32 groups, so that the order does not depend on the processes a run is started with;
    else a multiple of the groups, so that none has more lanes than another.
    """
    return LANES if num_groups <= MAX_GROUPS else num_groups * -(-LANES // num_groups)


def block_rows(weights: Sequence[float]) -> int:
    """Rows a lane shuffles at a time: the fewer lanes share the weight, the more."""
    shares = np.asarray(weights) / sum(weights)
    return int(np.clip(WINDOW_ROWS * (shares**2).sum(), MIN_BLOCK_ROWS, MAX_BLOCK_ROWS))


def first_block_rows(lane: int, block_rows: int) -> int:
    """Of a lane's first block of an epoch: from 0 to block_rows, evenly spread over the lanes.

    Else all lanes come to their next blocks together: on 220 MB of English, 500 steps of 3 ms of work and
    then 100 of 65 ms, again and again; now 3 to 24 ms each.
    """
    return int(block_rows * ((lane + 1) * GOLDEN_RATIO % 1))


def piece_order(seed: int, epoch: int, lane: int, num_pieces: int) -> np.ndarray:
    """The order in which a lane reads its pieces in `epoch`."""
    return np.random.default_rng([seed, epoch, lane, 0]).permutation(num_pieces)


def row_order(seed: int, block: tuple[int, ...], num_rows: int) -> np.ndarray:
    """The order in which the rows of a block are given; `block`: lane, epoch, and where it starts."""
    return np.random.default_rng([seed, *block, 1]).permutation(num_rows)


class Turns:
    """How many rows each lane gives to a step of `batch_size` rows.

    weights: of each lane, such as its share of the bytes; a lane without weight is never asked.

    Lanes are drawn from a deck that is dealt again and again. Every lane lies in it as often as its weight
    says, evenly spaced, and neighbours in the deck are neighbouring lanes: so the lanes l with the same
    l mod n together give nearly the same number of rows in every step, whatever n is.
    """

    def __init__(self, weights: Sequence[float], batch_size: int, seed: int) -> None:
        self._num_lanes, self._batch_size = len(weights), batch_size
        self._deck = _deck(np.asarray(weights, np.float64))
        self._start = int(np.random.default_rng([seed, 2]).integers(len(self._deck)))

    def counts(self, step: int) -> np.ndarray:
        """int64[lanes] for the 0-based step; their sum is batch_size."""
        draws = self._start + step * self._batch_size + np.arange(self._batch_size)
        return np.bincount(self._deck[draws % len(self._deck)], minlength=self._num_lanes)


def _deck(weights: np.ndarray) -> np.ndarray:
    assert weights.max() > 0, "no lane has anything"
    usual = np.median(weights[weights > 0])
    # lanes of nearly one weight keep their places to one another, and groups of lanes stay level
    weights = np.where(np.abs(weights / usual - 1) < ALIKE, usual, weights)
    draws = np.maximum(1, np.rint(weights / weights.sum() * DECK_DRAWS)).astype(np.int64) * (weights > 0)
    lane = np.repeat(np.arange(len(weights)), draws)
    number = np.arange(len(lane)) - np.repeat(np.cumsum(draws) - draws, draws)
    # the k-th of n draws of a lane; lanes of one weight follow one another by number
    at = (number + (lane + 0.5) / len(weights)) / draws[lane]
    return lane[np.argsort(at, kind="stable")].astype(np.int32)
