import pytest

from tinybert_dist.training.schedule import learning_rate_at


def rates(schedule, warmup, total=10):
    return [
        learning_rate_at(s, total_steps=total, peak=1.0, warmup_proportion=warmup, schedule=schedule)
        for s in range(total)
    ]


def test_linear_with_warm_up():
    assert rates("linear", 0.2) == pytest.approx(
        [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )


def test_constant_is_constant():
    assert rates("constant", 0.0) == [1.0] * 10
    assert rates("constant", 0.2)[:2] == [0.5, 1.0]


def test_no_warm_up_starts_at_the_peak():
    assert rates("linear", 0.0)[0] == 1.0
