import numpy as np
import pytest

from tinybert_dist.data import order
from tinybert_dist.data.order import Order, cut


def set_sizes(monkeypatch, block_rows, window_blocks):
    monkeypatch.setattr(order, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(order, "WINDOW_BLOCKS", window_blocks)
    clear()


def clear():
    for function in (order._cut_rows, order._blocks, order._rows):
        function.cache_clear()


@pytest.fixture(autouse=True)
def _own_windows():
    clear()
    yield
    clear()


def whole_epoch(num_rows, seed=1, epoch=0):
    return Order(num_rows, num_rows, seed).rows(epoch)


@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 1000])
def test_every_epoch_takes_every_row_once(num_rows):
    law = Order(num_rows, 32, seed=7)
    for epoch in range(3):
        steps = range(epoch * law.steps_per_epoch, (epoch + 1) * law.steps_per_epoch)
        rows = np.concatenate([law.rows(step) for step in steps])
        assert sorted(rows) == list(range(num_rows))
        assert all(law.epoch(step) == epoch for step in steps)


@pytest.mark.parametrize("num_rows", [8 * 3 + 1, 8 * 10 + 5, 8 * 11, 8 * 12])
def test_many_blocks_and_windows(monkeypatch, num_rows):
    """The large-corpus path: several windows, a short last block, any step reached directly."""
    set_sizes(monkeypatch, 8, 3)
    for epoch in (0, 1):
        whole = whole_epoch(num_rows, epoch=epoch)
        assert sorted(whole) == list(range(num_rows))
        for batch_size in (7, 20):
            law = Order(num_rows, batch_size, 1)
            for step in reversed(range(law.steps_per_epoch)):
                expected = whole[step * batch_size : (step + 1) * batch_size]
                assert np.array_equal(law.rows(epoch * law.steps_per_epoch + step), expected)


def test_order_is_a_function_of_seed_and_epoch():
    first = whole_epoch(500, 3)
    clear()
    assert np.array_equal(first, whole_epoch(500, 3))
    assert not np.array_equal(first, whole_epoch(500, 3, epoch=1))
    assert not np.array_equal(first, whole_epoch(500, 4))


def test_a_run_begun_earlier_goes_on_in_the_order_it_began():
    assert whole_epoch(5000, 3, epoch=1)[:6].tolist() == [218, 1951, 1677, 1438, 4248, 1085]


def test_one_window_is_a_full_shuffle():
    rows = whole_epoch(100_000)
    assert len(Order(100_000, 100_000, 1).pieces(0)) == 1
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(rows, np.arange(100_000))[0, 1]) < 0.02


def spreads(num_rows, batch_size, epochs=4):
    """Statistics of a corpus sorted by length, each as a ratio to what a full shuffle has."""
    values = np.sort(np.random.default_rng(0).gamma(4, 6, num_rows))
    batches = [values[whole_epoch(num_rows, epoch=e)].reshape(-1, batch_size) for e in range(epochs)]
    full = [np.random.default_rng(e).permutation(values).reshape(-1, batch_size) for e in range(epochs)]
    of_mean = np.std([b.mean(axis=1) for b in batches]) / np.std([f.mean(axis=1) for f in full])
    of_spread = np.mean([b.std(axis=1) for b in batches]) / np.mean([f.std(axis=1) for f in full])
    following = [np.corrcoef(b.mean(axis=1)[:-1], b.mean(axis=1)[1:])[0, 1] for b in batches]
    neighbours = [np.corrcoef(b.ravel()[:-1], b.ravel()[1:])[0, 1] for b in batches]
    return of_mean, of_spread, float(np.mean(following)), float(np.mean(neighbours))


def test_a_sorted_corpus_is_shuffled_as_well_as_fully(monkeypatch):
    """64 windows of 64 blocks of 64 rows, batches as large as a window has blocks."""
    set_sizes(monkeypatch, 64, 64)
    of_mean, of_spread, following, neighbours = spreads(1 << 18, 64)
    assert of_mean == pytest.approx(1, abs=0.05), "batches differ from each other as after a full shuffle"
    assert of_spread == pytest.approx(1, abs=0.01), (
        "a batch holds short and long rows as after a full shuffle"
    )
    assert abs(following) < 0.05, "a batch tells nothing of the next"
    assert abs(neighbours) < 0.01, "nor a row of the next"


def test_the_measure_of_the_shuffle_finds_a_poor_one(monkeypatch):
    """Guard of the test above: blocks in random order, rows shuffled in each."""
    set_sizes(monkeypatch, 64, 1)
    of_mean, of_spread, _, neighbours = spreads(1 << 18, 64)
    assert of_mean > 5 and of_spread < 0.2 and neighbours > 0.9


def test_rows_of_a_block_part_and_the_last_window_is_no_smaller(monkeypatch):
    """Pairs of a block in a batch are as rare as 1 / blocks of the window, in the last batches too."""
    set_sizes(monkeypatch, 64, 64)
    num_blocks, batch_size = 64 * 3 + 2, 64
    blocks = whole_epoch(64 * num_blocks) // 64
    batches = blocks.reshape(-1, batch_size)
    pairs = [sum(n * (n - 1) / 2 for n in np.unique(b, return_counts=True)[1]) for b in batches]
    expected = batch_size * (batch_size - 1) / 2 / (num_blocks / 4)
    assert np.mean(pairs) == pytest.approx(expected, rel=0.1)
    assert np.mean(pairs[-4:]) < 1.5 * expected


def test_every_window_draws_from_every_stretch_of_the_corpus(monkeypatch):
    set_sizes(monkeypatch, 8, 16)
    num_rows = 8 * 16 * 5
    law = Order(num_rows, 8, 0)
    windows = {window for step in range(law.steps_per_epoch) for window, _, _ in law.pieces(step)}
    assert len(windows) == 5
    again = {window._replace(epoch=1) for window in windows}
    assert len({frozenset(b.start for b in window.blocks()) for window in windows | again}) == 10
    assert len({tuple(window.shuffled(np.arange(8 * 16))) for window in windows | again}) == 10
    for window in windows:
        assert sorted(block.start // (8 * 5) for block in window.blocks()) == list(range(16))


def test_any_step_costs_as_much_as_the_first(monkeypatch):
    """Work is counted in windows built: one to begin anywhere, one for each new window, none in between."""
    set_sizes(monkeypatch, 8, 4)
    law = Order(8 * 4 * 20, 12, 0)
    for step in (0, 2, 25, law.steps_per_epoch - 1, 3 * law.steps_per_epoch + 9):
        clear()
        built = len(law.pieces(step))
        law.rows(step)
        assert order._rows.cache_info().misses == built <= 2 and order._cut_rows.cache_info().misses == 1
    clear()
    for step in range(law.steps_per_epoch):
        law.rows(step)
        law.upcoming_blocks(step)
    assert order._rows.cache_info().misses == 20, "steps over a boundary do not build a window again"


def test_what_a_window_holds_is_asked_for_while_the_one_before_is_read(monkeypatch):
    set_sizes(monkeypatch, 8, 4)
    law = Order(8 * 4 * 5 - 3, 12, 0)
    asked, held = [], {w: w.blocks() for s in range(2 * law.steps_per_epoch) for w, _, _ in law.pieces(s)}
    for step in range(law.steps_per_epoch):
        asked += law.upcoming_blocks(step)
    first = next(iter(held))
    coming = [first := first.following() for _ in range(5)]
    assert coming[-1].epoch == 1 and asked == [block for window in coming for block in held[window]]
    assert Order(8 * 4, 12, 0).upcoming_blocks(0) == [], "all of it is there already"


def test_values_are_shuffled_as_rows_are():
    """Lengths of a window's blocks, shuffled, stand beside its rows whatever their type."""
    ((window, _, _),) = Order(5000, 5000, 3).pieces(0)
    values = np.concatenate([np.arange(b.start, b.stop, dtype=np.int32) for b in window.blocks()])
    assert np.array_equal(window.shuffled(values), Order(5000, 5000, 3).rows(0))


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
