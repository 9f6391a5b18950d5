"""What a micro-batch is: its layouts against a literal reading, sample by sample; masking."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from tinybert_dist.data import order
from tinybert_dist.data.batches import Collator, StepBatches, masked_language_model
from tinybert_dist.data.length_groups import group_bounds
from tinybert_dist.data.order import Order, cut
from tinybert_dist.data.token_writer import TokenWriter
from tinybert_dist.data.tokens import Sample, Samples, TokenDataset
from tinybert_dist.micro_batch import MicroBatch


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
    names = ("input_ids", "token_type_ids", "position_ids", "attention_mask", "token_labels")
    rows = {name: [] for name in names}
    for b, sample in enumerate(samples):
        ids = sample.input_ids.tolist()
        places = range(len(ids))
        padding = 0 if layout == "packed" else longest - len(ids)
        rows["input_ids"].append(ids + [pad] * padding)
        rows["token_type_ids"].append([int(i >= sample.segment_b) for i in places] + [0] * padding)
        rows["position_ids"].append(list(places))
        rows["attention_mask"].append([1] * len(ids) + [0] * padding)
        if token_labels is not None:
            rows["token_labels"].append(token_labels[b].tolist() + [-100] * padding)
    lengths = [len(s.input_ids) for s in samples]
    flat = {name: torch.tensor([value for row in rows[name] for value in row]) for name in names}
    if layout == "packed":
        shaped = {name: flat[name].unsqueeze(0) for name in ("input_ids", "token_type_ids", "position_ids")}
        shaped |= blocks_one_by_one([lengths[a:b] for a, b in group_bounds(np.array(lengths))])
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


def blocks_one_by_one(groups):
    """Where tokens stand in the groups' blocks, flattened; a block is as long as the longest of its group."""
    index, masks, shapes, start = [], [], [], 0
    for lengths in groups:
        longest = max(lengths)
        shapes.append((len(lengths), longest))
        mask = torch.tensor([[[[i < n for i in range(longest)]]] for n in lengths])
        masks.append(None if mask.all() else mask)
        for n in lengths:
            index += range(start, start + n)
            start += longest
    return {
        "block_index_T": torch.tensor(index),
        "block_masks": tuple(masks),
        "block_shapes": tuple(shapes),
    }


def assert_equal(actual, expected):
    for field in fields(MicroBatch):
        ours, theirs = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(theirs, torch.Tensor) or field.name == "block_masks":
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


@pytest.mark.parametrize(
    "lengths", [[3, 5, 4], [2] * 9 + [50] * 3, [7] * 4, [3] * 8 + [30, 31] + [90] * 2, [1]]
)
def test_to_blocks_and_back(lengths):
    batch = Collator("packed", 0)(rows_of(lengths))
    x = torch.randn(1, 2, batch.num_tokens, 5, requires_grad=True)
    groups = batch.to_blocks(x)
    assert [(len(blocks), blocks.shape[2]) for blocks in groups] == list(batch.block_shapes)
    starts = batch.starts_B.tolist()
    blocks_one_by_one = [block for blocks in groups for block in blocks]
    for start, length, block in zip(starts, lengths, blocks_one_by_one, strict=True):
        assert torch.equal(block[:, :length], x[0, :, start : start + length])
        assert not block[:, length:].any()
    row = batch.to_row(groups)
    assert torch.equal(row, x.transpose(1, 2))
    weights = torch.randn_like(row)
    (gradient,) = torch.autograd.grad((row * weights).sum(), x)
    assert torch.equal(gradient, weights.transpose(1, 2))


def test_all_tensors_move():
    batch = Collator("packed", 0)(rows_of([2] * 9 + [50, 51])).to("meta")
    moved = [batch.input_ids, batch.block_index_T, *(m for m in batch.block_masks if m is not None)]
    assert len(moved) == 3 and all(tensor.device.type == "meta" for tensor in moved)
    assert batch.rows_B.device.type == "cpu"


def rows_of(lengths):
    return Samples.of([Sample(i, np.arange(n), n, None) for i, n in enumerate(lengths)])


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
