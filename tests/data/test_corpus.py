"""The rows of a corpus: those of its text, on any processes and machines, killed or grown."""

import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_runs import bare, line, rows_of, run, text_of
from transformers import BertTokenizerFast

from tinybert_dist.config import UserError
from tinybert_dist.data import corpus, corpus_build, corpus_join, corpus_part
from tinybert_dist.data.corpus_part import HOST
from tinybert_dist.data.corpus_pieces import Share, assign
from tinybert_dist.data.tokens import TokenDataset


def test_every_token_of_every_file_is_there_in_order(texts, tmp_path):
    summary = run(texts, tmp_path)
    expected = [token for name in "abc" for token in bare((texts / f"{name}.txt").read_text())]
    assert text_of(tmp_path / "out") == expected
    assert summary["text_tokens"] == summary["text_tokens_tokenized"] == len(expected)
    assert (summary["files"], summary["documents"], summary["sentences"]) == (3, 6, 36)
    assert summary["rows"] == len(rows_of(tmp_path / "out")) and summary["unknown_pct"] == 0
    header = TokenDataset.open(tmp_path / "out").header
    assert header["mode"] == "pairs" and header["max_seq_length"] == 16 and header["seed"] == 42
    assert [item["name"] for item in header["pieces"]] == ["a.txt", "b.txt", "c.txt"]


@pytest.mark.parametrize("mode", ["pairs", "line"])
@pytest.mark.parametrize(
    ("name", "vocab"),
    [("en/wikinews_en.sent.txt.gz", "bert-base-uncased"), ("zh/zhwiki_20mb.txt.gz", "bert-base-chinese")],
)
def test_real_texts(shared_data, tmp_path, name, vocab, mode):
    tokenizer = BertTokenizerFast(
        vocab=str(shared_data / "vocab" / vocab / "vocab.txt"), do_lower_case=vocab.endswith("uncased")
    )
    with gzip.open(shared_data / "corpus" / name, "rt", encoding="utf-8") as lines:
        sample = [line.rstrip("\n") for line in itertools.islice(lines, 5000)]
    (tmp_path / "sample.txt").write_text("\n".join(sample), encoding="utf-8")
    summary = run(tmp_path / "sample.txt", tmp_path, tokenizer, recipe={"max_seq_length": 128, "mode": mode})
    rows = rows_of(tmp_path / "out")
    special = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    expected = [ids for ids in bare([line.split("\t")[0].strip() for line in sample], tokenizer) if ids]
    if mode == "line":
        assert [ids[1:-1] for ids, _ in rows] == [ids[:126] for ids in expected]
        assert summary["cut_tokens"] == sum(max(0, len(ids) - 126) for ids in expected)
    else:
        found = [token for ids, _ in rows for token in ids if token not in special]
        assert found == list(itertools.chain.from_iterable(expected))
        assert sum(b < len(ids) for ids, b in rows) / len(rows) > 0.5
        assert summary["cut_tokens"] == 0
    assert max(len(ids) for ids, _ in rows) <= 128


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(corpus, "PIECE_BYTES", 100)


KILLED = """
import sys; from pathlib import Path; from tests.data.corpus_runs import run
from tinybert_dist.data import corpus
corpus.PIECE_BYTES = 300_000
run(Path(sys.argv[1]) / "texts", Path(sys.argv[1]), num_workers=int(sys.argv[2]))
"""


@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_command_loses_the_pieces_in_hand_and_nothing_else(tmp_path, monkeypatch, num_workers):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "huge.txt").write_text("\n".join(line(i, 11) for i in range(60_000)) + "\n")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), str(num_workers)])
    out = tmp_path / "out"
    deadline = time.monotonic() + 60
    while len(list(out.glob("part-*"))) < 4 or not list(out.glob(".part-*.tmp")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, "the processes of its pool end with it"
    finished = len(list(out.glob("part-*")))
    assert 1 <= len(list(out.glob(".part-*.tmp"))) <= num_workers and not (out / "manifest.json").exists()
    monkeypatch.setattr(corpus, "PIECE_BYTES", 300_000)
    summary = run(tmp_path / "texts", tmp_path)
    assert summary["pieces"] > finished >= 4
    assert summary["pieces_tokenized"] == summary["pieces"] - finished
    assert not list(out.glob(".part-*"))
    manifest = (out / "manifest.json").read_bytes()
    shutil.rmtree(out)
    run(tmp_path / "texts", tmp_path)
    assert (out / "manifest.json").read_bytes() == manifest, "the same shards as never disturbed"


@pytest.mark.usefixtures("small_pieces")
def test_a_huge_file_is_cut_and_the_rows_depend_on_nothing_but_the_text(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for k, name in enumerate("abc"):
        (texts / f"{name}.txt").write_text(
            "\n".join(line(100 * k + i) + "\n" * (i % 4 == 0) for i in range(20))
        )
    whole = [bare(line) for name in "abc" for line in (texts / f"{name}.txt").read_text().split("\n")]
    summary = run(texts, tmp_path)
    assert (summary["files"], summary["files_tokenized"]) == (3, 3) and summary["pieces"] > 6
    alone, manifest = rows_of(tmp_path / "out"), (tmp_path / "out" / "manifest.json").read_bytes()
    assert text_of(tmp_path / "out") == [token for ids in whole for token in ids]
    shutil.rmtree(tmp_path / "out")
    assert run(texts, tmp_path, num_workers=2)["pieces_tokenized"] == summary["pieces"]
    assert (tmp_path / "out" / "manifest.json").read_bytes() == manifest
    for index in (2, 0, 3, 1):
        target = tmp_path / "shares"
        target.mkdir(exist_ok=True)
        partial = run(texts, target, share=Share(index, 4))
    assert "missing" not in partial and rows_of(target / "out") == alone
    assert (target / "out" / "manifest.json").read_bytes() == manifest


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", ["a.txt", "b.jsonl", "c.parquet"])
def test_what_is_added_to_a_file_rebuilds_its_end_only(tmp_path, name):
    def write(count):
        rows = [line(i) for i in range(count)]
        if name == "c.parquet":
            pq.write_table(pa.table({"text": rows}), tmp_path / name, row_group_size=10)
        else:
            rows = rows if name == "a.txt" else [json.dumps({"text": row}) for row in rows]
            (tmp_path / name).write_text("".join(f"{row}\n" for row in rows))

    write(50)
    before = run(tmp_path / name, tmp_path)
    write(52)
    after = run(tmp_path / name, tmp_path)
    assert after["pieces"] >= before["pieces"] > 3 and 1 <= after["pieces_tokenized"] <= 2
    incremental = rows_of(tmp_path / "out")
    assert text_of(tmp_path / "out") == [token for i in range(52) for token in bare(line(i))]
    shutil.rmtree(tmp_path / "out")
    run(tmp_path / name, tmp_path)
    assert rows_of(tmp_path / "out") == incremental


def test_a_text_that_changes_while_it_is_read_is_not_taken(texts, tmp_path, monkeypatch):
    real = corpus_part.TokenWriter.add

    def add(*arguments):
        with open(texts / "b.txt", "a") as file:
            file.write("the dog\n")
        return real(*arguments)

    monkeypatch.setattr(corpus_part.TokenWriter, "add", add)
    with pytest.raises(UserError, match=r"b\.txt changed while it was read"):
        run(texts / "b.txt", tmp_path)
    monkeypatch.undo()
    run(texts / "b.txt", tmp_path)
    assert text_of(tmp_path / "out") == bare((texts / "b.txt").read_text())


@pytest.mark.usefixtures("small_pieces")
def test_shares_say_what_is_missing_and_the_last_one_joins(tmp_path):
    texts = tmp_path / "a.txt"
    texts.write_text("\n".join(map(line, range(60))))
    whole = run(texts, tmp_path)
    expected = (tmp_path / "out" / "manifest.json").read_bytes()
    shutil.rmtree(tmp_path / "out")
    first = run(texts, tmp_path, share=Share(0, 2))
    assert list(first["missing"]) == ["2/2"] and not (tmp_path / "out" / "manifest.json").exists()
    assert 0 < first["pieces_tokenized"] < whole["pieces"] and first["text_tokens_tokenized"] > 0
    assert first["missing"]["2/2"] == whole["pieces"] - first["pieces_tokenized"]
    again = run(texts, tmp_path, share=Share(0, 2))
    assert again["pieces_tokenized"] == 0 and again["missing"] == first["missing"]
    last = run(texts, tmp_path, share=Share(1, 2))
    assert last["pieces_tokenized"] == first["missing"]["2/2"] and last["rows"] == whole["rows"]
    assert (tmp_path / "out" / "manifest.json").read_bytes() == expected
    done = run(texts, tmp_path, share=Share(0, 2))
    assert "missing" not in done and done["pieces_tokenized"] == 0
    assert (tmp_path / "out" / "manifest.json").read_bytes() == expected
    assert run(texts, tmp_path)["pieces_tokenized"] == 0, "and so finds everything who needs no shares"


@pytest.mark.usefixtures("small_pieces")
def test_a_share_of_other_text_is_not_joined_and_a_copy_of_the_same_is(texts, tmp_path):
    run(texts, tmp_path, share=Share(1, 2))
    shutil.copytree(texts, tmp_path / "copy")
    (tmp_path / "out" / "keep").parent.mkdir(exist_ok=True)
    joined = run(tmp_path / "copy", tmp_path, share=Share(0, 2))
    assert "missing" not in joined, "another machine's copy has other times"
    shutil.rmtree(tmp_path / "out")
    run(texts, tmp_path, share=Share(1, 2))
    for path in texts.iterdir():
        path.write_text(path.read_text().replace("dog", "cat"))
    assert run(texts, tmp_path, share=Share(0, 2))["missing"], "of that share's text the rows are not known"


def test_the_work_of_others_is_left_alone(texts, tmp_path):
    run(texts, tmp_path)
    out = tmp_path / "out"
    part, key = next(out.glob("part-*")), "0123456789abcdef"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, gone = f".part-{key}.{HOST}.{os.getpid()}.tmp", f".part-{key}.{HOST}.{dead.pid}.tmp"
    elsewhere, old = f".part-{key}.00000000.1.tmp", f".part-{key}.00000000.2.tmp"
    for name in (f"part-{key}", here, gone, elsewhere, old):
        shutil.copytree(part, out / name)
    a_while_ago = time.time() - corpus_join.ABANDONED_AFTER_S - 9
    os.utime(out / old, (a_while_ago, a_while_ago))
    (texts / "a.txt").write_text("the cat\n")
    run(texts, tmp_path)
    left = {path.name for path in out.iterdir()}
    assert {f"part-{key}", here, elsewhere} <= left and not {gone, old} & left
    assert len([name for name in left if name.startswith("part-")]) == 4, (
        "what the corpus held before is gone"
    )


def test_two_that_finish_the_same_piece_leave_one_whole_part(texts, tmp_path, monkeypatch):
    run(texts, tmp_path)
    rows = rows_of(tmp_path / "out")
    # both looked before either had finished
    monkeypatch.setattr(corpus_build, "is_finished", lambda *_: False)
    run(texts, tmp_path)
    monkeypatch.undo()
    assert rows_of(tmp_path / "out") == rows and not list((tmp_path / "out").glob(".part-*"))


def test_processes_give_the_same_rows(texts, tmp_path):
    run(texts, tmp_path)
    alone = rows_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    summary = run(texts, tmp_path, num_workers=2)
    assert summary["files_tokenized"] == 3 and rows_of(tmp_path / "out") == alone


def test_a_bad_record_in_a_worker_process_stops_the_run_with_its_place(texts, tmp_path):
    (texts / "d.txt").write_bytes(b"the cat\n\xff\n")
    with pytest.raises(UserError, match=r"d\.txt:2: byte 0xff"):
        run(texts, tmp_path, num_workers=2)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_files_are_shared_out_evenly_and_completely():
    sizes = [5, 90, 10, 40, 30, 20, 0, 0]
    for num_processes in range(1, 10):
        shares = assign(sizes, num_processes)
        assert sorted(i for share in shares for i in share) == list(range(8))
        assert len(shares) == num_processes
        assert shares == assign(sizes, num_processes)
    assert max(sum(sizes[i] for i in share) for share in assign(sizes, 2)) <= 105
