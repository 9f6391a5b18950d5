"""Text behind URLs, on web servers and on the data hub."""

import functools
import gzip
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import zstandard
from source_texts import texts_of, write

from tinybert_dist.config import UserError
from tinybert_dist.data.sources import Piece, Source, find_sources, read_sentences, split, version_of
from tinybert_dist.data.text import BadRecords


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


def test_a_hub_name_without_its_mark_is_recognised():
    with pytest.raises(UserError, match=r"Then give hub:some-org/some\.name"):
        find_sources("some-org/some.name")


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
