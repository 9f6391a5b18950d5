"""The micro-batches of every step and of evaluation, on any number of processes and workers."""

import time

import pytest
import torch

from tinybert_dist.data import batches, order
from tinybert_dist.data.batches import Collator, StepBatches, delivery_rate, draw_seed, evaluation_batches
from tinybert_dist.data.order import Order


def steps_of(dataset, world_size, **kwargs):
    law = Order(len(dataset), 16, seed=1)
    return [
        StepBatches(dataset, law, Collator("packed", 0), 4, None, rank, world_size, **kwargs)
        for rank in range(world_size)
    ]


def real(micro_batches):
    return {m: b for m, b in micro_batches if not b.is_dummy}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8])
def test_any_world_size_computes_the_same_micro_batches(dataset, world_size):
    alone = steps_of(dataset, 1)[0]
    for step in (0, 5, 6, 7):  # 6 is the short last step of the first epoch
        expected = real(alone[step])
        shares = [ranks[step] for ranks in steps_of(dataset, world_size)]
        assert (
            len({len(share) for share in shares}) == 1
        )  # nobody waits for a micro-batch another does not have
        assert sum(len(real(share)) for share in shares) == len(expected), "none on two processes"
        together = {}
        for share in shares:
            together |= real(share)
        assert together.keys() == expected.keys()
        for m, batch in expected.items():
            assert torch.equal(batch.input_ids, together[m].input_ids)


def test_every_process_has_its_turn_with_the_shortest_rows(dataset):
    ranks = steps_of(dataset, 4)
    shares = [[[m for m, _ in batches[step]] for batches in ranks] for step in range(4)]
    assert all(sorted(m for share in step for m in share) == [0, 1, 2, 3] for step in shares)
    assert {step.index([0]) for step in shares} == {0, 1, 2, 3}


def test_loader_starts_anywhere_and_does_not_depend_on_workers(dataset):
    batches = steps_of(dataset, 1)[0]
    whole = [b.rows_B.tolist() for s in range(10) for _, b in batches[s]]
    for workers in (0, 2):
        tail = [
            b.rows_B.tolist()
            for s in batches.loader(3, 10, num_workers=workers, pin_memory=False)
            for _, b in s
        ]
        assert tail == whole[12:]


@pytest.mark.parametrize("first_step", [0, 2, 31])
def test_rows_are_asked_from_the_disk_before_they_are_read(dataset, monkeypatch, first_step):
    monkeypatch.setattr(order, "BLOCK_ROWS", 4)
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 5)
    asked, read, fetch = set(), [], dataset.fetch

    def read_ahead(blocks):
        asked.update(row for block in blocks for row in block)

    def checked(rows):
        assert asked.issuperset(rows)
        read.extend(rows)
        return fetch(rows)

    monkeypatch.setattr(dataset, "read_ahead", read_ahead)
    monkeypatch.setattr(dataset, "fetch", checked)
    law = Order(101, 4, seed=21)
    steps = StepBatches(dataset, law, Collator("packed", 0), 4, None, 0, 1)
    list(steps.loader(first_step, first_step + 12, num_workers=0, pin_memory=False))
    assert len(read) >= 45 and len(asked) < 101


def test_loader_leaves_the_random_state_alone(dataset):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    next(steps_of(dataset, 1)[0].loader(0, 4, num_workers=0, pin_memory=False))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_takes_every_row_once(dataset, world_size):
    collate = Collator("packed", 0)
    rows = [
        row
        for rank in range(world_size)
        for batch in evaluation_batches(dataset, collate, 64, rank, world_size)
        for row in batch.rows_B.tolist()
    ]
    assert sorted(rows) == list(range(len(dataset)))


@pytest.mark.parametrize("rows", [None, range(30, 95), range(7, 8), range(50, 50)])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_sorts_a_part_of_the_rows_at_a_time(dataset, world_size, rows, monkeypatch):
    """Memory does not grow with the rows, and no process gets another number of micro-batches."""
    monkeypatch.setattr(batches, "EVALUATED_ROWS", 40)
    shares = [
        list(evaluation_batches(dataset, Collator("packed", 0), 200, rank, world_size, rows))
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    real = [batch for share in shares for batch in share if not batch.is_dummy]
    rows = range(101) if rows is None else rows
    assert sorted(row for b in real for row in b.rows_B.tolist()) == list(rows)
    assert all(len({(row - rows.start) // 40 for row in b.rows_B.tolist()}) == 1 for b in real)


def test_delivery_is_counted_in_real_tokens_of_this_process(dataset):
    """Against the clock around it: tokens of all steps taken, none of a dummy."""
    law, taken = Order(len(dataset), 16, seed=1), []

    class Counted(StepBatches):
        def __getitem__(self, step):
            got = super().__getitem__(step)
            taken.append(sum(b.num_tokens for _, b in got if not b.is_dummy))
            return got

    for rank, world_size in ((0, 1), (1, 2)):
        taken.clear()
        started = time.perf_counter()
        rate = delivery_rate(Counted(dataset, law, Collator("packed", 0), 4, None, rank, world_size), 0.1)
        assert 0 < rate * 0.1 <= sum(taken) <= rate * (time.perf_counter() - started)
        assert len(taken) > law.steps_per_epoch, "it goes on after the epoch"
    assert delivery_rate(Counted(dataset, law, Collator("packed", 0), 4, None, 39, 40), 0) == 0, "dummies"


def test_draw_seed_is_pure_and_spread():
    seeds = {draw_seed(42, step, m) for step in range(50) for m in range(4)}
    assert len(seeds) == 200 and draw_seed(42, 3, 1) == draw_seed(42, 3, 1)
