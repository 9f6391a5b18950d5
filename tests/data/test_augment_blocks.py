import json
import shutil

import pyarrow.parquet as pq
import pytest

from tinybert_dist.config import StageFailed
from tinybert_dist.data import augment_blocks
from tinybert_dist.data.augment_blocks import MANIFEST, Blocks, ParquetRows, TsvRows
from tinybert_dist.files import sha256_of

HEADER = ["text", "label"]
ROWS = [[[f"text {b} {i}", str(i % 2)] for i in range(3)] for b in range(4)]
FORMATS = {"tsv": ("out.tsv", TsvRows(HEADER)), "parquet": ("out", ParquetRows(HEADER))}


def blocks_of(folder, kind="tsv", fingerprint="0123456789abcdef"):
    name, rows = FORMATS[kind]
    return Blocks(folder / name, fingerprint, len(ROWS), rows)


def fill(blocks, order=range(4)):
    for b in order:
        blocks.write(b, ROWS[b], {"rows": len(ROWS[b]), "block": b})
    return blocks


def in_order(facts):
    return {"blocks": [each["block"] for each in facts], "rows": sum(each["rows"] for each in facts)}


def content(output):
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    return {path.name: path.read_bytes() for path in files}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", FORMATS)
def test_order_of_finishing_does_not_show(tmp_path, kind):
    for folder, order in ((tmp_path / "a", range(4)), (tmp_path / "b", (3, 1, 0, 2))):
        blocks = fill(blocks_of(folder, kind), order)
        assert blocks.missing(range(4), verify=True) == [] and blocks.finished() is None
        summary, is_first = blocks.join(in_order)
        assert summary == {"blocks": [0, 1, 2, 3], "rows": 12} == blocks_of(folder, kind).finished()
        assert is_first
        assert names(folder) == sorted([blocks.output.name, f".{blocks.output.name}.state.json"])
    outputs = [content(tmp_path / name / FORMATS[kind][0]) for name in "ab"]
    assert outputs[0] == outputs[1]


def test_tsv_without_header_and_with_it(tmp_path):
    fill(blocks_of(tmp_path)).join(in_order)
    lines = (tmp_path / "out.tsv").read_text().split("\n")
    assert lines[:2] == ["text\tlabel", "text 0 0\t0"] and len(lines) == 1 + 12 + 1
    bare = fill(Blocks(tmp_path / "bare.txt", "0" * 16, 4, TsvRows(None)))
    bare.join(in_order)
    assert (tmp_path / "bare.txt").read_text().split("\n") == lines[1:]


def test_parquet_shards_and_manifest(tmp_path, monkeypatch):
    blocks = fill(blocks_of(tmp_path, "parquet"))
    # every second block begins a shard
    monkeypatch.setattr(augment_blocks, "SHARD_BYTES", (blocks._folder / "0").stat().st_size + 1)
    blocks.join(in_order)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert (manifest["columns"], manifest["rows"]) == (HEADER, 12)
    assert names(tmp_path / "out") == [MANIFEST, "part-00000.parquet", "part-00001.parquet"]
    rows = []
    for part in manifest["parts"]:
        path = tmp_path / "out" / part["name"]
        assert (part["bytes"], part["sha256"], part["rows"]) == (path.stat().st_size, sha256_of(path), 6)
        file = pq.ParquetFile(path)
        assert file.num_row_groups == 2 and {field.type for field in file.schema_arrow} == {"string"}
        rows += [list(row.values()) for row in file.read().to_pylist()]
    assert rows == [row for block in ROWS for row in block]


@pytest.mark.parametrize("kind", FORMATS)
def test_two_processes_that_join_at_once(tmp_path, monkeypatch, kind):
    first, second = (fill(blocks_of(tmp_path, kind)) for _ in range(2))
    alone = fill(blocks_of(tmp_path / "alone", kind))
    alone.join(in_order)
    publish, joined = Blocks._publish, []

    def interrupted(self, staged):
        # when the second has its output ready, the first publishes its own and clears the blocks away
        if not joined:
            joined.append("second")
            joined.append(first.join(in_order))
        publish(self, staged)

    monkeypatch.setattr(Blocks, "_publish", interrupted)
    assert joined == [] and second.join(in_order) == (first.finished(), False)
    assert joined[1] == (first.finished(), True)
    assert content(first.output) == content(alone.output)
    assert names(tmp_path) == sorted(["alone", first.output.name, f".{first.output.name}.state.json"])


def test_a_block_written_after_the_join_is_cleared(tmp_path):
    late = fill(blocks_of(tmp_path))
    late.join(in_order)
    late.write(2, ROWS[2], {})
    assert late.finished() is not None
    late.clear()
    assert names(tmp_path) == [".out.tsv.state.json", "out.tsv"]


def test_damaged_and_half_written_blocks_are_missing(tmp_path):
    blocks = fill(blocks_of(tmp_path))
    data = blocks._folder / "1"
    data.write_bytes(data.read_bytes().replace(b"text", b"tixt"))
    (blocks._folder / "2.json").unlink()
    (blocks._folder / "3").unlink()
    assert blocks.missing(range(4)) == [2, 3]
    assert blocks.missing(range(4), verify=True) == [1, 2, 3]
    assert blocks.missing(range(0, 4, 2), verify=True) == [2]
    fill(blocks, (2, 3))
    with pytest.raises(StageFailed, match=r"1 is damaged.*same command makes it again"):
        blocks.join(in_order)
    assert not blocks.output.exists() and not list(blocks._folder.glob("joined*"))
    fill(blocks, (1,)).join(in_order)
    assert blocks.finished()["rows"] == 12


@pytest.mark.parametrize("kind", FORMATS)
def test_other_fingerprints_and_changed_outputs(tmp_path, kind):
    started = fill(blocks_of(tmp_path, kind, "f" * 16), (0,))
    other = FORMATS["parquet" if kind == "tsv" else "tsv"]
    elsewhere = Blocks(tmp_path / other[0], "e" * 16, 4, other[1])
    elsewhere.write(0, ROWS[0], {})
    blocks = fill(blocks_of(tmp_path, kind))
    blocks.join(in_order)
    assert started.finished() is None and not started._folder.exists()  # the output is another's now
    assert elsewhere._folder.exists()
    fill(started).join(in_order)  # takes the place of what is there
    assert blocks.finished() is None and started.finished() is not None
    if kind == "tsv":
        started.output.write_text("cut")
    else:
        (started.output / MANIFEST).unlink()
    assert started.finished() is None
    shutil.rmtree(started.output) if kind == "parquet" else started.output.unlink()
    assert started.finished() is None
