"""Texts of local files: found, cut into pieces anywhere, every line of them read once."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from source_texts import texts_of, whole, write

from tinybert_dist.config import UserError
from tinybert_dist.data.sources import Piece, Source, find_sources, read_sentences, split
from tinybert_dist.data.text import BadRecords


def sentences_of(path, bad=None, column="text", **options):
    return list(read_sentences(whole(path), bad or BadRecords(), column, **options))


def test_sentences_of_text_end_documents_at_blank_lines_and_take_the_first_field(tmp_path):
    path = write(tmp_path / "a.txt", " one \ntwo\tlabel\n \t\n\tno text\nthree\n")
    assert sentences_of(path) == [(1, "one"), (2, "two"), (3, None), (5, "three")]


def test_sentences_of_tables_are_the_lines_of_a_row(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"body": "x\\n\\ny"}\n{"body": "z"}\n')
    assert sentences_of(path, column="body") == [(1, "x"), (1, "y"), (1, None), (2, "z"), (2, None)]
    with pytest.raises(UserError, match=r"no key 'text'.*text_column"):
        sentences_of(path)
    path = write(tmp_path / "a.csv", "id,body\n1,x\n")
    with pytest.raises(UserError, match=r"no column 'text'; it has id, body"):
        sentences_of(path, BadRecords("skip"))
    path = write(tmp_path / "b.jsonl", '{"text": null}\n{"text": "ok"}\n')
    bad = BadRecords("skip")
    assert sentences_of(path, bad) == [(2, "ok"), (2, None)]
    assert bad.total == 1
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"c\.parquet: no column 'text'; it has body, n"):
        sentences_of(tmp_path / "c.parquet", BadRecords("skip"))


def test_files_folders_and_patterns_are_found(tmp_path, capsys):
    for name in ("b.txt", "a.jsonl.gz", "sub/c.CSV", "sub/.hidden.txt", ".git/d.txt", "e.arrow", "f.txt.zst"):
        write(tmp_path / name, "x")
    found = find_sources(tmp_path)
    assert [source.name for source in found] == ["a.jsonl.gz", "b.txt", "f.txt.zst", "sub/c.CSV"]
    assert [source.size_bytes for source in found] == [1] * 4
    assert "1 files of other kinds left out: e.arrow" in capsys.readouterr().err
    (named,) = find_sources(tmp_path / "e.arrow")
    assert named.path == str(tmp_path / "e.arrow"), "a file that is named is taken"
    assert [s.name for s in find_sources(f"{tmp_path}/**/*.CSV")] == ["sub/c.CSV"]
    assert [s.path for s in find_sources(f"file://{tmp_path}/b.txt")] == [str(tmp_path / "b.txt")]
    for wrong in (tmp_path / "absent.txt", f"{tmp_path}/*.nothing", tmp_path / ".git" / "x"):
        with pytest.raises(UserError, match="--corpus"):
            find_sources(wrong, "--corpus")
    write(tmp_path / "other" / "e.arrow", "x")
    with pytest.raises(UserError, match="no file with a known extension"):
        find_sources(tmp_path / "other")


def test_files_of_one_name_in_several_folders_keep_their_folders(tmp_path):
    for name in ("a/x.txt", "b/x.txt"):
        write(tmp_path / name, "x")
    assert [source.name for source in find_sources(f"{tmp_path}/*/x.txt")] == ["a/x.txt", "b/x.txt"]


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"a\.txt: No such file"):
        find_sources(tmp_path)


TEXT = "\ufeffone\r\ntwo is longer\n\n\u4e2d\u6587\u5b57\r\n\r\nlast line, no end \u00e9".encode()


@pytest.mark.parametrize(
    "content", [TEXT, TEXT + b"\n", b"\n", b"x", b"\r\n\r\n", TEXT.replace(b"\n", b"\n\n")]
)
def test_text_cut_anywhere_has_every_line_once(tmp_path, memory, content):
    path = write(tmp_path / "a.txt", content)
    memory.pipe("/a.txt", content)
    expected = texts_of([whole(path)])
    for found in (find_sources(path), find_sources("memory://a.txt")):
        for piece_bytes in range(1, len(content) + 2):
            pieces = split(found[0], piece_bytes)
            assert sum(piece.size_bytes for piece in pieces) == len(content)
            assert max(piece.size_bytes for piece in pieces) <= piece_bytes
            assert texts_of(pieces) == expected


def test_json_lines_cut_anywhere_have_every_row_once(tmp_path):
    content = "".join(json.dumps({"text": f"row {i}\n\u4e2d"}, ensure_ascii=False) + "\n" for i in range(9))
    path = write(tmp_path / "a.jsonl", content)
    (source,) = find_sources(path)
    for piece_bytes in range(1, len(content.encode()) + 2):
        assert texts_of(split(source, piece_bytes)) == texts_of([Piece(source)])


def test_parquet_is_cut_between_row_groups(tmp_path, memory):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"t{i}" for i in range(100)]}), path, row_group_size=10)
    memory.pipe("/a.parquet", path.read_bytes())
    expected = [text for i in range(100) for text in (f"t{i}", None)]
    for found in (find_sources(path), find_sources("memory://a.parquet")):
        for piece_bytes in (1, 150, 10**6):
            pieces = split(found[0], piece_bytes)
            assert texts_of(pieces) == expected
        assert len(split(found[0], 1)) == 10 and len(split(found[0], 10**6)) == 1


def test_what_cannot_be_entered_is_one_piece(tmp_path):
    for name in ("a.txt.gz", "a.jsonl.zst", "a.csv", "a.tsv"):
        (source,) = find_sources(write(tmp_path / name, "x" * 100))
        assert split(source, 7) == [Piece(source, 0, None, 100)]
    web = Source("https://example.org/a.txt", "a.txt", 100, "")
    assert split(web, 7) == [Piece(web, 0, None, 100)]


def test_an_empty_file_has_one_empty_piece(tmp_path):
    (source,) = find_sources(write(tmp_path / "a.txt", ""))
    assert texts_of(split(source, 7)) == []
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    (source,) = find_sources(tmp_path / "a.parquet")
    assert texts_of(split(source, 7)) == []


def test_a_file_that_grows_keeps_its_first_pieces(tmp_path):
    path = write(tmp_path / "a.txt", b"line\n" * 20)
    before = split(find_sources(path)[0], 30)
    with open(path, "ab") as file:
        file.write(b"more\n" * 4)
    after = split(find_sources(path)[0], 30)
    assert [piece[1:] for piece in after[:3]] == [piece[1:] for piece in before[:3]] and len(after) == 4


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet", "a.txt.gz", "a.jsonl.zst"])
def test_passing_over_records_continues_after_a_position(tmp_path, name):
    rows = [f"text {i}" for i in range(40)]
    if name == "a.parquet":
        pq.write_table(pa.table({"text": rows}), tmp_path / name, row_group_size=9)
    else:
        kind = name.split(".")[1]
        lines = {"txt": rows, "csv": ["text", *(f'"{row}\nmore"' for row in rows)]}
        lines["jsonl"] = [json.dumps({"text": row}) for row in rows]
        content = "".join(f"{line}\n" for line in lines[kind]).encode()
        pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.split(".")[-1], bytes)
        write(tmp_path / name, pack(content))
    (source,) = find_sources(tmp_path / name)
    for piece in split(source, 60):
        items = list(read_sentences(piece, BadRecords()))
        for position in {position for position, _ in items}:
            rest = [item for item in items if item[0] > position]
            assert list(read_sentences(piece, BadRecords(), skip_records=position)) == rest


def test_progress_adds_up_to_the_file(tmp_path):
    path = write(tmp_path / "a.txt", b"some line\n" * 5000)
    read = []
    for piece in split(find_sources(path)[0], 7000):
        list(read_sentences(piece, BadRecords(), on_read=read.append))
    assert sum(read) == pytest.approx(path.stat().st_size, abs=10)
