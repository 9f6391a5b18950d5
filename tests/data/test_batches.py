import numpy as np
import pytest
import torch

from tinybert_dist.data.batches import (
    Collator,
    StepBatches,
    draw_seed,
    evaluation_batches,
    masked_language_model,
)
from tinybert_dist.data.order import Order
from tinybert_dist.data.tokens import TokenDataset


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
