import numpy as np
import pytest

from tinybert_dist.data import order
from tinybert_dist.data.order import Order, cut, shuffled


@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 1000])
def test_every_epoch_takes_every_row_once(num_rows):
    law = Order(num_rows, 32, seed=7)
    for epoch in range(3):
        steps = range(epoch * law.steps_per_epoch, (epoch + 1) * law.steps_per_epoch)
        rows = np.concatenate([law.rows(step) for step in steps])
        assert sorted(rows) == list(range(num_rows))
        assert all(law.epoch(step) == epoch for step in steps)


def test_many_blocks_and_windows(monkeypatch):
    """The large-corpus path: several windows, a short last block, any position reached directly."""
    monkeypatch.setattr(order, "BLOCK_ROWS", 8)
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 3)
    monkeypatch.setattr(order, "_last_window", [None, None])
    num_rows = 8 * 10 + 5
    whole = shuffled(num_rows, 1, 0, 0, num_rows)
    assert sorted(whole) == list(range(num_rows))
    for start in range(0, num_rows, 7):
        count = min(20, num_rows - start)
        assert np.array_equal(shuffled(num_rows, 1, 0, start, count), whole[start : start + count])


def test_order_is_a_function_of_seed_and_epoch():
    first = shuffled(500, 3, 0, 0, 500)
    assert np.array_equal(first, shuffled(500, 3, 0, 0, 500))
    assert not np.array_equal(first, shuffled(500, 3, 1, 0, 500))
    assert not np.array_equal(first, shuffled(500, 4, 0, 0, 500))


def test_cut_balances_tokens_and_keeps_every_sample():
    lengths = np.random.default_rng(0).integers(3, 128, 64)
    pieces = cut(lengths, 4, None)
    assert sorted(np.concatenate(pieces)) == list(range(64))
    tokens = [int(lengths[p].sum()) for p in pieces]
    assert max(tokens) - min(tokens) <= 128
    assert max(lengths[pieces[0]]) <= min(lengths[pieces[-1]])  # short ones together


def test_cut_respects_a_token_budget_and_few_samples():
    lengths = np.full(10, 50)
    assert len(cut(lengths, 1, 100)) == 5
    pieces = cut(np.array([4, 9]), 4, None)
    assert len(pieces) == 4 and sorted(np.concatenate(pieces)) == [0, 1]
