import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tinybert_dist.config import UserError
from tinybert_dist.data.tables import read_rows
from tinybert_dist.data.text import BadRecords, read_lines


def lines_of(path, bad=None):
    return list(read_lines(path, bad or BadRecords()))


def rows_of(path, bad=None):
    return list(read_rows(path, bad or BadRecords()))


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lines_lose_their_newlines_and_the_byte_order_mark_and_nothing_else(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n two \n\n\xe4\xb8\xad\xc2\x85\xe2\x80\xa8x\nlast\r")
    assert lines_of(path) == [(1, "one"), (2, " two "), (3, ""), (4, "\u4e2d\u0085\u2028x"), (5, "last\r")]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_lines(tmp_path, content):
    assert lines_of(write(tmp_path / "a.txt", content)) == []


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress), ("", bytes)]
)
def test_archives_read_as_the_plain_file_members_and_all(tmp_path, suffix, compress):
    content = b"".join(b"line %d\n" % i for i in range(200_000))
    path = write(tmp_path / f"a.txt{suffix}", compress(content) + compress(b"second member\n"))
    read = []
    lines = list(read_lines(path, BadRecords(), read.append))
    assert [text for _, text in lines[:-1]] == content.decode().split("\n")[:-1]
    assert lines[-1] == (200_001, "second member")
    assert sum(read) == path.stat().st_size, "progress counts the bytes on disk"


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_a_cut_archive_is_an_error_that_names_the_file(tmp_path, suffix, compress):
    packed = compress(b"line\n" * 100_000)
    path = write(tmp_path / f"cut.txt{suffix}", packed[:-7])
    with pytest.raises(UserError, match=rf"cut\.txt\{suffix}.*damaged or cut short"):
        lines_of(path)
    path = write(tmp_path / f"fake.txt{suffix}", b"plain text, no archive")
    with pytest.raises(UserError, match=rf"fake\.txt\{suffix}"):
        lines_of(path)


def test_bad_bytes_are_named_with_line_and_offset_or_counted(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfgood\nb\xffd\nalso good\n\xc3")
    with pytest.raises(UserError, match=r"a\.txt:2: byte 0xff at offset 9 is not UTF-8.*on_bad_record skip"):
        lines_of(path)
    bad = BadRecords("skip")
    assert lines_of(path, bad) == [(1, "good"), (3, "also good")]
    assert bad.total == 2
    assert "2 x byte" in bad.summary() and "a.txt:2" in bad.summary()
    assert path.read_bytes()[9] == 0xFF
    path = write(tmp_path / "b.txt", b"\xef\xbb\xbfab\xff\n")
    with pytest.raises(UserError, match=r"b\.txt:1: byte 0xff at offset 5"):
        lines_of(path)


def test_bad_records_are_counted_by_kind_and_have_no_summary_when_there_are_none():
    bad = BadRecords("skip")
    assert bad.summary() == ""
    bad.report("f", 1, "3 fields where the header has 4", "Repair.")
    bad.report("g", 9, "5 fields where the header has 4", "Repair.")
    bad.report("g", 11, "not valid JSON", "Repair.")
    assert bad.total == 3
    assert "2 x N fields where the header has N (first f:1)" in bad.summary()
    with pytest.raises(UserError, match="on_bad_record ignore"):
        BadRecords("ignore")


def test_csv_follows_its_quoting(tmp_path):
    content = 'id,text\n1,"a ""quoted"", field\nover two lines"\n\n2,plain\n3,too,many\n4,"open\n'
    path = write(tmp_path / "a.csv", content)
    bad = BadRecords("skip")
    assert rows_of(path, bad) == [
        (2, {"id": "1", "text": 'a "quoted", field\nover two lines'}),
        (5, {"id": "2", "text": "plain"}),
    ]
    assert bad.total == 2
    with pytest.raises(UserError, match=r"a\.csv:6: 3 fields where the header has 2"):
        rows_of(path)


def test_tsv_has_quoting_off(tmp_path):
    path = write(tmp_path / "a.tsv", 'id\ttext\n1\t"he said\n2\tnot" ok\nshort\n')
    bad = BadRecords("skip")
    assert rows_of(path, bad) == [(2, {"id": "1", "text": '"he said'}), (3, {"id": "2", "text": 'not" ok'})]
    assert bad.total == 1


def test_json_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "x\\ny"}\n\n[1]\n{"text": \n{"a": 1}\n')
    bad = BadRecords("skip")
    assert rows_of(path, bad) == [(1, {"text": "x\ny"}), (5, {"a": 1})]
    assert bad.total == 2
    with pytest.raises(UserError, match=r"a\.jsonl:3: holds list"):
        rows_of(path)


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"t{i}" for i in range(3000)], "n": list(range(3000))}), path)
    read = []
    rows = list(read_rows(path, BadRecords(), read.append))
    assert len(rows) == 3000 and rows[1500] == (1501, {"text": "t1500", "n": 1500})
    assert 0.9 * path.stat().st_size < sum(read) <= path.stat().st_size
    with pytest.raises(UserError, match=r"b\.parquet:1: not a readable Parquet"):
        rows_of(write(tmp_path / "b.parquet", path.read_bytes()[:-20]))


def test_a_repeated_header_name_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.csv:1: the header names 'x' twice"):
        rows_of(write(tmp_path / "a.csv", "x,y,x\n1,2,3\n"))
    with pytest.raises(UserError, match="not a table"):
        rows_of(write(tmp_path / "a.txt", "x"))
