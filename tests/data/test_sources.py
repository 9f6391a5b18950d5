import functools
import gzip
import json
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tinybert_dist.config import UserError
from tinybert_dist.data import text
from tinybert_dist.data.sources import Piece, Source, find_sources, read_sentences, split, version_of
from tinybert_dist.data.text import BadRecords


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def whole(path):
    (source,) = find_sources(path)
    return Piece(source)


def sentences_of(path, bad=None, column="text", **options):
    return list(read_sentences(whole(path), bad or BadRecords(), column, **options))


def texts_of(pieces, bad=None):
    bad = bad or BadRecords()
    return [text for piece in pieces for _, text in read_sentences(piece, bad)]


@pytest.fixture
def memory():
    file_system = fsspec.filesystem("memory")
    file_system.store.clear()
    yield file_system
    file_system.store.clear()


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


def test_a_hub_name_without_its_mark_is_recognised():
    with pytest.raises(UserError, match=r"Then give hub:some-org/some\.name"):
        find_sources("some-org/some.name")


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


def test_urls_are_files_folders_and_patterns_too(memory):
    memory.pipe("/corpus/b.txt", b"bee\n")
    memory.pipe("/corpus/sub/a.jsonl.gz", gzip.compress(b'{"text": "a"}\n'))
    memory.pipe("/corpus/c.txt.zst", zstandard.compress(b"c\n"))
    memory.pipe("/corpus/README.md", b"no\n")
    memory.pipe("/corpus/.hidden.txt", b"no\n")
    found = find_sources("memory://corpus")
    assert [source.name for source in found] == ["b.txt", "c.txt.zst", "sub/a.jsonl.gz"]
    assert texts_of(map(Piece, found)) == ["bee", "c", "a", None]
    assert [source.name for source in find_sources("memory://corpus/*.txt*")] == ["b.txt", "c.txt.zst"]
    (source,) = find_sources("memory://corpus/b.txt")
    assert source == Source("memory://corpus/b.txt", "b.txt", 4, source.version)
    assert version_of(source) == source.version
    memory.pipe("/corpus/b.txt", b"bea\n")
    assert version_of(source) != source.version
    for wrong in ("memory://corpus/absent.txt", "memory://corpus/*.nothing", "nosuch://corpus/a.txt"):
        with pytest.raises(UserError, match=wrong.replace("*", r"\*")):
            find_sources(wrong)


def test_credentials_of_urls_stay_out_of_names_and_messages(memory):
    for url in ("memory://me:SECRET@corpus/absent.txt?token=SECRET&x=SECRET", "nosuch://me:SECRET@x/a.txt"):
        with pytest.raises(UserError) as error:
            find_sources(url)
        assert "SECRET" not in str(error.value) and error.value.__cause__ is None


def test_web_servers_are_read_from_the_beginning(tmp_path):
    pytest.importorskip("aiohttp")
    content = b"".join(b"line %d\n" % i for i in range(300_000))
    write(tmp_path / "a.txt", content)
    write(tmp_path / "b.txt.gz", gzip.compress(content))
    # this one cannot start in the middle of a file
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for name in ("a.txt", "b.txt.gz"):
            (source,) = find_sources(f"{address}/{name}?token=SECRET")
            assert source.name == name and source.size_bytes == (tmp_path / name).stat().st_size
            texts = texts_of(split(source, 1000))
            assert len(texts) == 300_000 and texts[-1] == "line 299999"
        with pytest.raises(UserError, match=r"absent\.txt: nothing is there") as error:
            find_sources(f"{address}/absent.txt?token=SECRET")
        assert "SECRET" not in str(error.value)
        server.shutdown()


def test_a_cut_archive_behind_a_url_is_named_or_counted(memory):
    memory.pipe("/cut.txt.gz", gzip.compress(os.urandom(5000).hex().encode() + b"\n" + b"line\n" * 9)[:-7])
    (source,) = find_sources("memory://cut.txt.gz")
    with pytest.raises(UserError, match=r"memory://cut\.txt\.gz.*damaged or cut short"):
        texts_of([Piece(source)])
    bad = BadRecords("skip")
    assert len(texts_of([Piece(source)], bad)) >= 0 and bad.total == 1
    assert "cut.txt.gz:" in bad.summary() and "memory" not in bad.summary()


def test_a_local_folder_stands_for_a_hub_dataset(tmp_path):
    for i in range(3):
        write(tmp_path / "data" / f"{i}.txt", "".join(f"file {i} line {j}\n" for j in range(4)))
    found = find_sources(f"hub:{tmp_path}/data")
    assert [source.name for source in found] == [f"hub:data:train-0000{i}-of-00003" for i in range(3)]
    expected = [f"file {i} line {j}" for i in range(3) for j in range(4)]
    assert [text for text in texts_of(map(Piece, found)) if text] == expected
    piece = split(found[1], 1)[0]
    rest = list(read_sentences(piece, BadRecords(), skip_records=3))
    assert rest == [(4, "file 1 line 3"), (4, None)]
    assert version_of(found[0]) == found[0].version
    with pytest.raises(UserError, match=r"no column 'body'; it has text"):
        list(read_sentences(piece, BadRecords(), "body"))
    for wrong, message in (
        (f"{tmp_path}/data::test", "Available splits"),
        ("a:b:c:d", "give hub:NAME"),
        ("", "give"),
    ):
        with pytest.raises(UserError, match=message):
            find_sources(f"hub:{wrong}")
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(ConnectionError, match=r"hub:data:train-00001-of-00003: after row 0"):
        list(read_sentences(piece, BadRecords()))


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


def test_a_parquet_file_damaged_inside_keeps_what_stands_before(tmp_path):
    (source,) = find_sources(damaged_parquet(tmp_path))
    with pytest.raises(UserError, match=r"a\.parquet:1501: not readable as Parquet"):
        texts_of(split(source, 10**6))
    bad = BadRecords("skip")
    texts = [text for text in texts_of(split(source, 1), bad) if text]
    assert len(texts) == 3500 and bad.total == 1 and "a.parquet:1501" in bad.summary()


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
