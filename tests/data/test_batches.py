import time
from dataclasses import fields

import numpy as np
import pytest
import torch

from tinybert_dist.data import batches, order
from tinybert_dist.data.batches import (
    Collator,
    StepBatches,
    delivery_rate,
    draw_seed,
    evaluation_batches,
    masked_language_model,
)
from tinybert_dist.data.order import Order, cut
from tinybert_dist.data.token_writer import TokenWriter
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.micro_batch import MicroBatch


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 90, rng.integers(3, 30)) for _ in range(101)]
    return TokenDataset.from_rows(ids, [len(x) // 2 for x in ids], [float(i % 3) for i in range(101)])


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
        together = {}
        for share in shares:
            together |= real(share)
        assert together.keys() == expected.keys()
        for m, batch in expected.items():
            assert torch.equal(batch.input_ids, together[m].input_ids)


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


def test_counts_and_layouts_agree(dataset):
    samples = dataset.fetch([3, 8, 50])
    lengths = [len(s.input_ids) for s in samples]
    packed, padded, fixed = (Collator(layout, 0, 40)(samples) for layout in ("packed", "padded", "fixed"))
    for batch in (packed, padded, fixed):
        assert batch.num_tokens == sum(lengths)
        assert batch.num_pairs == sum(n * n for n in lengths)
        assert batch.input_ids.flatten()[batch.starts_B].tolist() == [s.input_ids[0] for s in samples]
        assert batch.labels_B.tolist() == [0.0, 2.0, 2.0]
    assert packed.num_computed_tokens == sum(lengths)
    assert padded.num_computed_tokens == 3 * max(lengths)
    assert fixed.num_computed_tokens == 3 * 40
    assert torch.equal(padded.input_ids[padded.attention_mask.bool()], packed.input_ids[0])
    assert torch.equal(padded.token_type_ids[padded.attention_mask.bool()], packed.token_type_ids[0])


def collate_one_by_one(layout, samples, token_labels=None, pad=9, max_length=40):
    """What a micro-batch is, sample by sample."""
    longest = max_length if layout == "fixed" else max(len(s.input_ids) for s in samples)
    names = ("input_ids", "token_type_ids", "position_ids", "block_index_T", "attention_mask", "token_labels")
    rows = {name: [] for name in names}
    for b, sample in enumerate(samples):
        ids = sample.input_ids.tolist()
        places = range(len(ids))
        padding = 0 if layout == "packed" else longest - len(ids)
        rows["input_ids"].append(ids + [pad] * padding)
        rows["token_type_ids"].append([int(i >= sample.segment_b) for i in places] + [0] * padding)
        rows["position_ids"].append(list(places))
        rows["block_index_T"].append([b * longest + i for i in places])
        rows["attention_mask"].append([1] * len(ids) + [0] * padding)
        if token_labels is not None:
            rows["token_labels"].append(token_labels[b].tolist() + [-100] * padding)
    lengths = [len(s.input_ids) for s in samples]
    flat = {name: torch.tensor([value for row in rows[name] for value in row]) for name in names}
    if layout == "packed":
        shaped = {name: flat[name].unsqueeze(0) for name in ("input_ids", "token_type_ids", "position_ids")}
        shaped["block_index_T"] = flat["block_index_T"]
        if min(lengths) < longest:
            shaped["block_mask"] = torch.tensor([[[[i < n for i in range(longest)]]] for n in lengths])
        starts = [sum(lengths[:b]) for b in range(len(samples))]
    else:
        shaped = {n: flat[n].view(-1, longest) for n in ("input_ids", "token_type_ids", "attention_mask")}
        starts = [b * longest for b in range(len(samples))]
    if token_labels is not None:
        shaped["token_labels"] = flat["token_labels"].view_as(shaped["input_ids"])
    return MicroBatch(
        **shaped,
        rows_B=torch.tensor([s.row for s in samples]),
        labels_B=torch.tensor([np.nan if s.label is None else s.label for s in samples], dtype=torch.float64),
        starts_B=torch.tensor(starts),
        num_tokens=sum(lengths),
        num_pairs=sum(n * n for n in lengths),
        max_length=longest,
        num_token_labels=sum(int((row != -100).sum()) for row in token_labels or []),
    )


def assert_equal(actual, expected):
    for field in fields(MicroBatch):
        ours, theirs = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True, msg=field.name)
        else:
            assert type(ours) is type(theirs) and ours == theirs, field.name


@pytest.fixture(scope="module", params=["in memory", "mapped"])
def mixed(request, dataset, tmp_path_factory):
    """Rows with one segment and with two, labelled and not, in memory and from shards."""
    samples = list(dataset.fetch(range(101)))
    starts = [len(s.input_ids) if s.row % 4 == 0 else s.segment_b for s in samples]
    labels = [None if s.row % 3 == 0 else s.label for s in samples]
    if request.param == "in memory":
        return TokenDataset.from_rows([s.input_ids for s in samples], starts, labels)
    folder = tmp_path_factory.mktemp("mixed")
    with TokenWriter(folder, rows_per_shard=7, vocab_size=100, header={}) as writer:
        for sample, start, label in zip(samples, starts, labels, strict=True):
            writer.add(sample.input_ids, start, label)
    return TokenDataset.open(folder)


@pytest.mark.parametrize("layout", ["packed", "padded", "fixed"])
@pytest.mark.parametrize("rows", [[3], [8, 3, 50], list(range(100, 0, -3)), [5, 5]])
def test_a_micro_batch_is_what_its_samples_are_one_by_one(mixed, layout, rows):
    samples = mixed.fetch(rows)
    collate = Collator(layout, 9, 40)
    assert_equal(collate(samples), collate_one_by_one(layout, samples))
    mask = masked_language_model(mask_token_id=4, vocab_size=90, special_ids=[0, 2, 3])
    pairs = [mask(s, np.random.default_rng(s.row)) for s in samples]
    masked, labels = [p[0] for p in pairs], [p[1] for p in pairs]
    assert_equal(collate(samples.of(masked), labels), collate_one_by_one(layout, masked, labels))


def test_a_step_is_what_its_rows_are_one_by_one(mixed, monkeypatch):
    """Several windows, steps across their borders, masking, a token limit, two processes."""
    monkeypatch.setattr(order, "BLOCK_ROWS", 4)
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 5)
    law = Order(101, 16, seed=20)  # of which no other test has windows of another size in the caches
    mask = masked_language_model(mask_token_id=4, vocab_size=90, special_ids=[0, 2, 3])
    ranks = [StepBatches(mixed, law, Collator("packed", 9), 2, 60, r, 2, mask) for r in range(2)]
    lengths = np.array([len(s.input_ids) for s in mixed.fetch(range(101))])
    crossing = 0
    for step in range(2 * law.steps_per_epoch):
        rows, crossing = law.rows(step), crossing + (len(law.pieces(step)) > 1)
        found = {m: b for rank in ranks for m, b in rank[step] if not b.is_dummy}
        for m, piece in enumerate(cut(lengths[rows], 2, 60)):
            keys = [[20, law.epoch(step), 2, row] for row in rows[piece]]
            samples = mixed.fetch(rows[piece])
            pairs = [mask(s, np.random.default_rng(k)) for s, k in zip(samples, keys, strict=True)]
            expected = collate_one_by_one("packed", [p[0] for p in pairs], [p[1] for p in pairs])
            assert_equal(found.pop(m), expected)
        assert not found
    assert crossing > 3


def test_to_blocks_and_back(dataset):
    batch = Collator("packed", 0)(dataset.fetch([1, 2, 3]))
    x = torch.randn(1, 2, batch.num_tokens, 5)
    blocks = batch.to_blocks(x)
    assert blocks.shape == (3, 2, batch.max_length, 5)
    assert torch.equal(batch.to_row(blocks), x.transpose(1, 2))
    assert torch.isclose(blocks.sum(), x.sum(), rtol=1e-4, atol=1e-4)


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


def test_masking_is_keyed_by_row_and_epoch(dataset):
    mask = masked_language_model(mask_token_id=4, vocab_size=90, special_ids=[0, 2, 3])
    sample = dataset.fetch([7])[0]
    first, labels = mask(sample, np.random.default_rng([1, 0, 2, 7]))
    again, _ = mask(sample, np.random.default_rng([1, 0, 2, 7]))
    assert np.array_equal(first.input_ids, again.input_ids)
    chosen = labels != -100
    assert chosen.sum() == max(1, round(0.15 * len(labels)))
    assert np.array_equal(labels[chosen], sample.input_ids[chosen])
    assert np.array_equal(first.input_ids[~chosen], sample.input_ids[~chosen])


def test_masking_shares(dataset):
    """80 % [MASK], 10 % random, 10 % unchanged; [CLS] and [SEP] never."""
    mask = masked_language_model(mask_token_id=4, vocab_size=90, special_ids=[2, 3])
    counts = np.zeros(3)
    for row in range(101):
        sample = dataset.fetch([row])[0]
        sample.input_ids[[0, -1]] = 2, 3
        masked, labels = mask(sample, np.random.default_rng(row))
        chosen = labels != -100
        assert not chosen[[0, -1]].any()
        new, old = masked.input_ids[chosen], sample.input_ids[chosen]
        counts += [(new == 4).sum(), ((new != 4) & (new != old)).sum(), ((new != 4) & (new == old)).sum()]
    assert counts[0] / counts.sum() == pytest.approx(0.8, abs=0.08)
    assert counts[1] / counts.sum() == pytest.approx(0.1, abs=0.06)


def test_draw_seed_is_pure_and_spread():
    seeds = {draw_seed(42, step, m) for step in range(50) for m in range(4)}
    assert len(seeds) == 200 and draw_seed(42, 3, 1) == draw_seed(42, 3, 1)
