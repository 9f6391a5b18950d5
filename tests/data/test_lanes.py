import numpy as np
import pytest

from tinybert_dist.data.lanes import DECK_DRAWS, Turns, block_rows, num_lanes, piece_order, row_order

WEIGHTS = {
    "equal": [1.0] * 96,
    "nearly equal": list(np.random.default_rng(0).uniform(0.985, 1.015, 96)),
    "alike": list(np.random.default_rng(0).uniform(0.8, 1.2, 96)),
    "one lane": [0.0, 0.0, 5.0, 0.0],
    "uneven": [1000.0, 10.0, 1.0, 0.0, 300.0, 7.0],
    "a tiny one": [1e9, 1.0],
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
def test_a_step_is_full_and_an_idle_lane_is_never_asked(weights, batch_size):
    turns = Turns(weights, batch_size, seed=3)
    for step in (0, 1, 2, 999, 10**9):
        counts = turns.counts(step)
        assert counts.sum() == batch_size and len(counts) == len(weights)
        assert not counts[np.array(weights) == 0].any()


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_lanes_are_asked_in_proportion_to_their_weights(weights):
    batch_size, num_steps = 64, 500
    turns = Turns(weights, batch_size, seed=1)
    given = sum(turns.counts(step) for step in range(num_steps))
    expected = np.array(weights) / sum(weights) * batch_size * num_steps
    # so that lanes end an epoch together; one draw of the deck is the finest share there is
    finest = batch_size * num_steps / DECK_DRAWS
    assert np.all(np.abs(given - expected) <= 1 + finest + 0.03 * expected)


@pytest.mark.parametrize("num_groups", [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32])
@pytest.mark.parametrize("batch_size", [32, 96, 256])
def test_groups_of_lanes_have_about_as_many_rows(num_groups, batch_size):
    """What a process computes in a step is the rows of the lanes l with one l mod num_groups."""
    turns = Turns(WEIGHTS["nearly equal"], batch_size, seed=1)
    group = np.arange(96) % num_groups
    for step in range(200):
        rows = np.bincount(group, turns.counts(step), minlength=num_groups)
        assert rows.max() - rows.min() <= 2 + batch_size // 96


def test_the_law_is_pure_and_depends_on_the_seed():
    turns = Turns(WEIGHTS["uneven"], 16, seed=1)
    forwards = [turns.counts(step).tolist() for step in range(50)]
    again = Turns(WEIGHTS["uneven"], 16, seed=1)
    assert forwards == [again.counts(step).tolist() for step in reversed(range(50))][::-1]
    assert forwards != [Turns(WEIGHTS["uneven"], 16, seed=2).counts(step).tolist() for step in range(50)]


def test_orders_are_permutations_keyed_by_seed_epoch_and_lane():
    orders = {key: piece_order(*key, 50).tolist() for key in [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == len(orders)
    assert orders[1, 0, 0] == piece_order(1, 0, 0, 50).tolist()
    rows = {block: row_order(1, block, 50).tolist() for block in [(0, 0, 0, 0), (0, 0, 0, 9), (0, 0, 1, 0)]}
    assert all(sorted(order) == list(range(50)) for order in rows.values())
    assert len({tuple(order) for order in rows.values()}) == len(rows)


def test_the_number_of_lanes_does_not_depend_on_the_usual_numbers_of_processes():
    assert {num_lanes(n) for n in range(1, 33)} == {96}
    assert all(num_lanes(n) % n == 0 and num_lanes(n) >= 96 for n in range(33, 200))


def test_fewer_lanes_shuffle_more_rows_each():
    assert block_rows([1]) > block_rows([1] * 24) > block_rows([1] * 96) > block_rows([1] * 10_000) > 0
    assert block_rows([1, 1, 0, 0]) == block_rows([1, 1])
    assert block_rows([1e9, 1]) == block_rows([1])
