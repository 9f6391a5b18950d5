"""Token folders: the rows that come back from them, and damage that is named."""

import json
import math
import os
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from token_folders import make_rows, write

from tinybert_dist.config import UserError
from tinybert_dist.data import token_writer
from tinybert_dist.data.token_manifest import write_joined_manifest
from tinybert_dist.data.token_shards import SHORT_IDS
from tinybert_dist.data.token_writer import TokenWriter
from tinybert_dist.data.tokens import TokenDataset


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "tokens", *make_rows(), mode="pairs")


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(1000, np.uint8), (1 << 16, np.uint8), ((1 << 16) + 1, np.uint16)]
)
def test_rows_come_back_from_any_shard_in_any_order(tmp_path, vocab_size, dtype):
    rows, segment_b = make_rows()
    rows[50][0] = vocab_size - 1
    dataset = TokenDataset.open(write(tmp_path / "t", rows, segment_b, vocab_size=vocab_size), verify=True)
    order = np.random.default_rng(1).permutation(100)
    samples = dataset.fetch(order)
    assert [sample.row for sample in samples] == order.tolist()
    assert [sample.input_ids.tolist() for sample in samples] == [rows[i] for i in order]
    assert [sample.segment_b for sample in samples] == [segment_b[i] for i in order]
    assert samples[0].input_ids.dtype == np.int64 and samples[0].label is None
    assert len(dataset._shards) == 4 and dataset._shards[0].rest.values.dtype == dtype
    assert dataset.lengths.dtype == np.int32 and dataset.lengths.tolist() == [len(ids) for ids in rows]
    assert dataset.num_tokens == sum(map(len, rows)) and len(dataset) == 100
    assert dataset.labels is None


def test_the_ids_are_a_view_of_the_mapped_file(folder):
    rows, segment_b = make_rows()
    dataset = TokenDataset.open(write(folder, rows, segment_b, vocab_size=1 << 16))
    coded = [lists.values for shard in dataset._shards for lists in (shard.lead, shard.rest)]
    assert len(coded) == 8 and all(len(v) and not (v.flags.owndata or v.flags.writeable) for v in coded)
    dataset.fetch([0])[0].input_ids[:] = 7
    assert TokenDataset.open(folder, verify=True).fetch([0])[0].input_ids.tolist() == make_rows()[0][0]


def test_a_shard_of_long_rows_ends_by_its_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(token_writer, "TOKENS_PER_SHARD", 50)
    dataset = TokenDataset.open(write(tmp_path / "t", [[7] * 20] * 7, [20] * 7))
    assert [len(shard.segment_b) for shard in dataset._shards] == [3, 3, 1]


def test_labels(tmp_path):
    rows, segment_b = make_rows(4)
    dataset = TokenDataset.open(
        write(tmp_path / "t", rows, segment_b, [1.0, None, math.nan, 2.5], rows_per_shard=2)
    )
    np.testing.assert_array_equal(dataset.labels, [1.0, math.nan, math.nan, 2.5])
    assert [sample.label for sample in dataset.fetch(range(4))] == [1.0, None, None, 2.5]
    assert dataset.labels.dtype == np.float64


@pytest.mark.parametrize("rows", [[100], [-1], [0, 1000]])
def test_rows_outside_are_refused(folder, rows):
    with pytest.raises(IndexError):
        TokenDataset.open(folder).fetch(rows)
    assert len(TokenDataset.open(folder).fetch([])) == 0


def test_rows_in_memory_are_as_those_of_a_folder(folder):
    rows, segment_b = make_rows()
    memory = TokenDataset.from_rows(rows, segment_b, [0.5] * 100)
    assert memory.fetch([50])[0].input_ids.tolist() == rows[50]
    assert TokenDataset.open(folder).fetch([50])[0].input_ids.tolist() == rows[50]
    assert memory.fetch([50])[0].label == 0.5 and TokenDataset.open(folder).fetch([50])[0].label is None
    assert len(TokenDataset.from_rows([], [])) == 0


def test_the_fingerprint_is_of_the_content_not_of_the_path(tmp_path, folder):
    rows, segment_b = make_rows()
    mark = TokenDataset.open(folder).fingerprint
    assert TokenDataset.open(write(tmp_path / "again", rows, segment_b, mode="x")).fingerprint == mark
    other = [[*rows[0][:-1], rows[0][-1] ^ 1], *rows[1:]]
    assert TokenDataset.open(write(tmp_path / "other", other, segment_b)).fingerprint != mark
    marks = {
        TokenDataset.from_rows(rows, segment_b).fingerprint,
        TokenDataset.from_rows(other, segment_b).fingerprint,
        TokenDataset.from_rows(rows, [0] * 100).fingerprint,
        TokenDataset.from_rows(rows, segment_b, [0.0] * 100).fingerprint,
    }
    assert len(marks) == 4
    assert TokenDataset.from_rows(rows, segment_b).fingerprint in marks


def test_what_is_asked_about_rows_is_read_from_their_shards(tmp_path, monkeypatch):
    rows, segment_b = make_rows()
    labels = [None if i % 3 else float(i) for i in range(100)]
    labels[40:] = [None] * 60  # the shards from there on have no column of labels
    folder = write(tmp_path / "a", rows, segment_b, labels, rows_per_shard=7)
    shuffled = np.random.default_rng(2).permutation(100)
    expected = np.array([math.nan if label is None else label for label in labels])
    lengths = np.array([len(ids) for ids in rows])
    for dataset in (TokenDataset.open(folder), TokenDataset.from_rows(rows, segment_b, labels)):
        assert dataset.has_labels and dataset.max_length == lengths.max()
        np.testing.assert_array_equal(dataset.labels_of(shuffled), expected[shuffled])
        np.testing.assert_array_equal(dataset.labels, expected)
        np.testing.assert_array_equal(dataset.lengths_of(shuffled), lengths[shuffled])
        blocks = [range(90, 100), range(3, 50), range(7, 8), range(0)]
        found = dataset.lengths_in(blocks)
        assert found.dtype == dataset.lengths_of([1]).dtype == np.int32
        assert (
            found.tolist() == lengths[np.concatenate([np.arange(b.start, b.stop) for b in blocks])].tolist()
        )
        dataset.read_ahead(blocks)
    for asked in ([100], [-1]):
        for method in (dataset.lengths_of, dataset.labels_of):
            with pytest.raises(IndexError):
                method(asked)


def test_a_manifest_without_the_longest_row_is_read_too(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    longest = [shard.pop("max_length") for shard in manifest["shards"]]
    path.write_text(json.dumps(manifest))
    dataset = TokenDataset.open(folder, verify=True)
    assert dataset.max_length == max(longest) == dataset.lengths.max()
    assert len(dataset.fetch([99, 0])) == 2


def first_tokens(dataset, rows):
    return [sample.input_ids[0].item() for sample in dataset.fetch(rows)]


def test_another_process_maps_the_files_again(folder):
    dataset = TokenDataset.open(folder)
    assert len(pickle.dumps(dataset)) < 2000, "no content travels"
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(first_tokens, dataset, [99, 3]).result() == first_tokens(dataset, [99, 3])
    memory = TokenDataset.from_rows(*make_rows())
    assert first_tokens(pickle.loads(pickle.dumps(memory)), [99]) == first_tokens(memory, [99])  # noqa: S301


def test_no_manifest_no_dataset(tmp_path):
    rows, segment_b = make_rows()
    with (
        pytest.raises(RuntimeError, match="power cut"),
        TokenWriter(tmp_path, rows_per_shard=30, vocab_size=1000, header={}) as writer,
    ):
        for ids, start in zip(rows, segment_b, strict=True):
            writer.add(ids, start)
        raise RuntimeError("power cut")
    assert (tmp_path / "tokens-00002.arrow").exists(), "the fault came after some shards"
    with pytest.raises(UserError, match=r"no manifest\.json.*prepare_corpus"):
        TokenDataset.open(tmp_path)


def test_a_new_dataset_replaces_the_old_one_and_its_shards(folder):
    rows, segment_b = make_rows(10)
    write(folder, rows, segment_b)
    assert len(TokenDataset.open(folder, verify=True)) == 10
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "tokens-00000.arrow"]


def cut(path):
    os.truncate(path, path.stat().st_size - 8)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def swap(path):
    other = path.with_name("tokens-00000.arrow").read_bytes()
    path.write_bytes(other)


@pytest.mark.parametrize(
    "damage", [cut, swap, lambda path: path.unlink(), lambda path: path.write_bytes(b"")]
)
def test_a_damaged_shard_is_named_with_the_remedy(folder, damage):
    damage(folder / "tokens-00003.arrow")
    with pytest.raises(UserError, match=r"tokens-00003\.arrow.*Delete the folder and prepare it again"):
        TokenDataset.open(folder)


def wider(batch):
    return batch.set_column(2, "segment_b", batch.column("segment_b").cast(pa.int64()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wider, r"not a readable shard \(columns of .*int64"),
        (lambda batch: batch.drop_columns(["rest"]), "not a readable shard .*rest"),
        (lambda batch: batch.replace_schema_metadata(None), "not a readable shard"),
        (lambda batch: batch.replace_schema_metadata({SHORT_IDS: "4 five"}), "not a readable shard .*five"),
        (lambda batch: batch.replace_schema_metadata({SHORT_IDS: "4 5"}), "not coded for the 1000 ids"),
    ],
)
def test_a_shard_of_other_columns_or_codes_is_not_misread(folder, change, message):
    path, listed = folder / "tokens-00003.arrow", folder / "manifest.json"
    with pa.OSFile(str(path)) as file:
        batch = change(pa.ipc.open_file(file).get_batch(0))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    manifest = json.loads(listed.read_text())
    manifest["shards"][3]["bytes"] = path.stat().st_size
    listed.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"tokens-00003\.arrow: {message}"):
        TokenDataset.open(folder)


def test_a_shard_that_grew_is_damaged(folder):
    path = folder / "tokens-00001.arrow"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UserError, match=rf"{size + 4} bytes where manifest\.json says {size}: damaged"):
        TokenDataset.open(folder)


def test_verify_finds_a_flipped_byte(folder):
    flip(folder / "tokens-00001.arrow")
    with pytest.raises(UserError, match=r"tokens-00001\.arrow: its sha256"):
        TokenDataset.open(folder, verify=True)


@pytest.mark.parametrize("part", ["lead", "rest"])
@pytest.mark.parametrize("value", [-1, 0, 5, 1 << 30])
def test_a_damaged_row_is_named_when_it_is_fetched(folder, part, value):
    """Opening reads no row; what a row says of itself is checked when it is read."""
    path, original = folder / "tokens-00001.arrow", TokenDataset.open(folder)
    offsets = np.array(getattr(original._shards[1], part).offsets)  # of rows 30..59
    content = path.read_bytes()
    at = content.index(offsets.tobytes()) + 4 * 10
    path.write_bytes(content[:at] + np.int32(value).tobytes() + content[at + 4 :])
    dataset = TokenDataset.open(folder)
    whole = [row for row in range(100) if row not in {39, 40}]
    assert len(dataset.fetch(whole)) == 98
    asks = [dataset.fetch, dataset.lengths_of, lambda rows: dataset.lengths_in([range(100)])]
    for ask in asks if part == "lead" else asks[:1]:
        with pytest.raises(
            UserError, match=r"tokens-00001\.arrow: row (9|10) is tokens .* Delete the folder"
        ):
            ask([2, 39, 40])
    with pytest.raises(UserError, match="sha256"):
        TokenDataset.open(folder, verify=True)


def test_a_row_whose_codes_do_not_match_is_named(folder):
    """Its offsets may be well: a long code that became a short one would shift what follows the others."""
    path, shard = folder / "tokens-00001.arrow", TokenDataset.open(folder)._shards[1]
    content = bytearray(path.read_bytes())
    num_short, lead = len(shard.short_ids), np.array(shard.lead.values)
    token = int(np.argmax(lead >= num_short))
    content[content.index(lead.tobytes()) + token] = 0
    path.write_bytes(content)
    row = 30 + int(np.searchsorted(shard.lead.offsets, token, side="right")) - 1
    dataset = TokenDataset.open(folder)
    assert len(dataset.fetch([i for i in range(100) if i != row])) == 99
    with pytest.raises(UserError, match=rf"00001\.arrow: the codes of row {row - 30} do not match.* Delete"):
        dataset.fetch(range(100))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "other", "written by something else"),
        ("version", 99, "version 99"),
        ("rows", 99, "not the sums"),
        ("shards", None, "not a readable manifest"),
    ],
)
def test_a_damaged_manifest_is_named(folder, key, value, message):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=rf"manifest\.json: .*{message}"):
        TokenDataset.open(folder)
    path.write_text("{")
    with pytest.raises(UserError, match="not a readable manifest"):
        TokenDataset.open(folder)


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd"])
def test_a_manifest_cannot_reach_outside_its_folder(folder, name):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["file"] = name
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="outside the folder"):
        TokenDataset.open(folder)


def test_an_id_outside_the_vocabulary_is_our_error(tmp_path):
    for ids in ([1000], [70000], [-1]):
        with pytest.raises((AssertionError, OverflowError)):
            write(tmp_path / "t", [ids], [1])


def test_joined_folders_are_one_dataset(tmp_path):
    rows, segment_b = make_rows()
    write(tmp_path / "x" / "a", rows[:40], segment_b[:40])
    write(tmp_path / "x" / "b", rows[40:], segment_b[40:])
    write_joined_manifest(tmp_path / "x", ["b", "a"], {"mode": "line"})
    dataset = TokenDataset.open(tmp_path / "x", verify=True)
    assert [s.input_ids.tolist() for s in dataset.fetch(range(100))] == rows[40:] + rows[:40]
    assert dataset.header == {"mode": "line"}
