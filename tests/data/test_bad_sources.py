"""Bad records and files of a corpus: named with file and line, or counted."""

import gzip
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_texts import texts_of, whole, write

from tinybert_dist.config import UserError
from tinybert_dist.data import text
from tinybert_dist.data.sources import Piece, find_sources, split
from tinybert_dist.data.text import BadRecords

BAD = {
    "UTF-8": ("a.txt", b"ok\nb\xffd\nok\n", r"a\.txt:2: byte 0xff at offset 4 is not UTF-8", 2),
    "UTF-16": ("a.txt", "ok\nok\n".encode("utf-16-le"), r"a\.txt:1: a NUL byte at offset 1", 0),
    "a NUL byte": ("a.jsonl", b'{"text": "ok"}\n{"text": "\0"}\n', r"a\.jsonl:2: a NUL byte at offset 25", 1),
    "JSON": ("a.jsonl", b'{"text": "ok"}\n{"text": \n', r"a\.jsonl:2: not valid JSON", 1),
    "no object": ("a.jsonl", b'{"text": "ok"}\n"text"\n', r"a\.jsonl:2: holds str, not an object", 1),
    "no key": ("a.jsonl", b'{"text": "ok"}\n{"body": "x"}\n', r"a\.jsonl:2: no key 'text'", 1),
    "no text": ("a.jsonl", b'{"text": 7}\n{"text": "ok"}\n', r"a\.jsonl:1: column 'text' holds int", 1),
    "CSV width": ("a.csv", b"id,text\n1,ok\n2\n", r"a\.csv:3: 1 fields where the header has 2", 1),
    "CSV quote": ("a.csv", b'text\nok\n"open\nto the end\n', r"a\.csv:3: not valid CSV", 1),
    "TSV width": ("a.tsv", b"id\ttext\n1\tok\n2\n", r"a\.tsv:3: 1 fields where the header has 2", 1),
    "no gzip": ("a.txt.gz", b"ok\n", r"a\.txt\.gz:1: .*damaged or cut short", 0),
    "cut Parquet": ("a.parquet", b"PAR1 and no more", r"a\.parquet:1: not a readable Parquet file", 0),
    "long line": (
        "a.txt",
        b"ok\n" + b"x" * 5000 + b"\nok\n",
        r"a\.txt:2: a line of 5001 bytes, more than 4096",
        2,
    ),
    "long last line": ("a.txt", b"ok\n" + b"x" * 5000, r"a\.txt:2: a line of 5000 bytes, more than 4096", 1),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_records_are_named_or_counted(tmp_path, monkeypatch, kind):
    name, content, message, num_good = BAD[kind]
    monkeypatch.setattr(text, "MAX_LINE_BYTES", 4096)
    (source,) = find_sources(write(tmp_path / name, content))
    pieces = split(source, 10**6)
    with pytest.raises(UserError, match=message):
        texts_of(pieces)
    bad = BadRecords("skip")
    assert [text for text in texts_of(pieces, bad) if text] == ["ok"] * num_good
    assert bad.total == 1 or kind == "UTF-16"
    assert f"(first {name}:" in bad.summary() and str(tmp_path) not in bad.summary()


def test_bad_records_inside_a_file_are_named_by_their_line_or_row(tmp_path, memory):
    content = b"good\n" * 10 + b"\xff\n" + b"good\n" * 10
    path = write(tmp_path / "a.txt", content)
    memory.pipe("/a.txt", content)
    pieces = split(find_sources(path)[0], 12)
    with pytest.raises(UserError, match=r"a\.txt:11: byte 0xff at offset 50"):
        texts_of(pieces)
    bad = BadRecords("skip")
    assert texts_of(pieces, bad) == ["good"] * 20 and bad.total == 1 and "a.txt:11" in bad.summary()
    with pytest.raises(UserError, match=r"memory://a\.txt:line 1 after byte 48: byte 0xff at offset 50"):
        texts_of(split(find_sources("memory://a.txt")[0], 12))
    rows = write(tmp_path / "b.jsonl", '{"text": "x"}\n' * 7 + "[]\n")
    with pytest.raises(UserError, match=r"b\.jsonl:8: holds list"):
        texts_of(split(find_sources(rows)[0], 20))
    pq.write_table(pa.table({"text": ["x"] * 30 + [None]}), tmp_path / "c.parquet", row_group_size=7)
    with pytest.raises(UserError, match=r"c\.parquet:31: column 'text' holds NoneType"):
        texts_of(split(find_sources(tmp_path / "c.parquet")[0], 1))


def damaged_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [f"text {i} {os.urandom(9).hex()}" for i in range(4000)]}), path, row_group_size=500
    )
    content = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(3).column(0).data_page_offset
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    return path


def test_a_parquet_file_damaged_inside_keeps_what_stands_before(tmp_path):
    (source,) = find_sources(damaged_parquet(tmp_path))
    with pytest.raises(UserError, match=r"a\.parquet:1501: not readable as Parquet"):
        texts_of(split(source, 10**6))
    bad = BadRecords("skip")
    texts = [text for text in texts_of(split(source, 1), bad) if text]
    assert len(texts) == 3500 and bad.total == 1 and "a.parquet:1501" in bad.summary()


def test_a_cut_archive_behind_a_url_is_named_or_counted(memory):
    memory.pipe("/cut.txt.gz", gzip.compress(os.urandom(5000).hex().encode() + b"\n" + b"line\n" * 9)[:-7])
    (source,) = find_sources("memory://cut.txt.gz")
    with pytest.raises(UserError, match=r"memory://cut\.txt\.gz.*damaged or cut short"):
        texts_of([Piece(source)])
    bad = BadRecords("skip")
    assert len(texts_of([Piece(source)], bad)) >= 0 and bad.total == 1
    assert "cut.txt.gz:" in bad.summary() and "memory" not in bad.summary()


def test_a_quote_that_is_never_closed_does_not_take_in_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr("tinybert_dist.data.tables.MAX_LINE_BYTES", 4096)
    path = write(tmp_path / "a.csv", 'text\n"open\n' + "some line\n" * 1000)
    bad = BadRecords("skip")
    assert len(texts_of([whole(path)], bad)) > 1000 and bad.total == 1 and "a.csv:2" in bad.summary()


def test_what_cannot_be_opened_is_named_before_anything_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match=r"pipe\.txt: not a regular file"):
        find_sources(tmp_path)
    os.unlink(tmp_path / "pipe.txt")
    write(tmp_path / "closed.txt", "x").chmod(0)
    write(tmp_path / "closed" / "a.txt", "x").parent.chmod(0)
    try:
        if os.access(tmp_path / "closed.txt", os.R_OK):
            pytest.skip("root reads everything")
        for path, message in (
            (tmp_path / "closed.txt", "closed.txt: Permission"),
            (tmp_path, "closed: Permission"),
        ):
            with pytest.raises(UserError, match=message):
                find_sources(path)
    finally:
        (tmp_path / "closed").chmod(0o700)
