"""Groups of like lengths: what they save, and that they are few."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from tinybert_dist.data.length_groups import LEAST_SAVED_PAIRS, MAX_GROUPS, group_bounds


def computed_pairs(lengths, bounds):
    return sum((last - first) * int(lengths[first:last].max()) ** 2 for first, last in bounds)


def lengths_like_text(num, seed):
    return np.sort(np.clip(np.random.default_rng(seed).lognormal(3.3, 0.7, num).astype(int), 3, 128))


@pytest.mark.parametrize("num", [1, 2, 5, 32, 300])
def test_every_sequence_is_in_one_group(num):
    for seed in range(20):
        lengths = np.random.default_rng(seed).permutation(lengths_like_text(num, seed))
        bounds = group_bounds(lengths)
        assert [i for first, last in bounds for i in range(first, last)] == list(range(num))
        assert 1 <= len(bounds) <= MAX_GROUPS and all(first < last for first, last in bounds)


def test_cuts_are_near_the_best():
    for seed in range(10):
        lengths = lengths_like_text(24, seed)
        tried = []
        for cuts in combinations(range(1, len(lengths)), MAX_GROUPS - 1):
            edges = [0, *cuts, len(lengths)]
            tried.append(computed_pairs(lengths, list(pairwise(edges))))
        found = computed_pairs(lengths, group_bounds(lengths))
        assert found <= 1.1 * min(tried) + 3 * LEAST_SAVED_PAIRS
        assert found < 0.6 * computed_pairs(lengths, [(0, len(lengths))])


@pytest.mark.parametrize("lengths", [[128] * 64, [127, 128] * 12, [5, 6, 7, 8], [3, 60]])
def test_alike_or_short_stay_one_group(lengths):
    assert group_bounds(np.array(lengths)) == [(0, len(lengths))]


def test_what_saves_enough_is_cut():
    assert group_bounds(np.array([10] * 20 + [100])) == [(0, 20), (20, 21)]
