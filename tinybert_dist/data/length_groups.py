"""Cuts the sequences of a micro-batch into groups of like lengths: attention pays for pairs of padding."""

import numpy as np

# On real lines, pairs computed / real ones: 32 sequences 5.9 in one group, 2.2 in 2, 1.3 in 4, 1.1 in 8;
# 256 sequences 8.3, 2.7, 1.6, 1.2. Each group is one more launch of each kernel in every layer.
MAX_GROUPS = 4
LEAST_SAVED_PAIRS = 4096  # a group costs about as much


def group_bounds(lengths: np.ndarray) -> list[tuple[int, int]]:
    """(first, after the last) of each group of neighbours; best when `lengths` [B] ascend.

    The cut that saves most is made first, which is within 6 % of the best cuts.
    """
    bounds = [(0, len(lengths))]
    while len(bounds) < MAX_GROUPS:
        cuts = [_best_cut(lengths[first:last]) for first, last in bounds]
        widest = max(range(len(cuts)), key=lambda i: cuts[i][0])
        saved_pairs, size = cuts[widest]
        if saved_pairs < LEAST_SAVED_PAIRS:
            break
        first, last = bounds[widest]
        bounds[widest : widest + 1] = [(first, first + size), (first + size, last)]
    return bounds


def _best_cut(lengths: np.ndarray) -> tuple[int, int]:
    """Pairs of padding that the best cut in two saves, and the size of the first part."""
    longest_before = np.maximum.accumulate(lengths)
    longest_after = np.maximum.accumulate(lengths[::-1])[::-1]
    sizes = np.arange(1, len(lengths))
    pairs = sizes * longest_before[:-1] ** 2 + sizes[::-1] * longest_after[1:] ** 2
    if len(pairs) == 0:
        return 0, 0
    best = int(pairs.argmin())
    return int(len(lengths) * longest_before[-1] ** 2 - pairs[best]), best + 1
