import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertTokenizerFast

from tinybert_dist.config import UserError
from tinybert_dist.data import corpus, corpus_build, corpus_join, corpus_part
from tinybert_dist.data.corpus import prepare
from tinybert_dist.data.corpus_part import HOST, Recipe
from tinybert_dist.data.corpus_pieces import Share, assign
from tinybert_dist.data.tokens import TokenDataset

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat dog sat on a mat . , ##s un ##able".split()
CLS, SEP = 2, 3


def line(i, num_words=9):
    """The i-th of 3 ** num_words different sentences."""
    return " ".join(("cat", "dog", "the mats")[i // 3**k % 3] for k in range(num_words))


def make_tokenizer(words=WORDS, lower=True):
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, do_lower_case=lower)


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, name in enumerate(["a.txt", "b.txt", "c.txt"]):
        document = "The cat sat on the mats .\nA dog , the dog\n" * (i + 2)
        (folder / name).write_text(f"{document}\n{document}")
    return folder


def rows_of(folder):
    dataset = TokenDataset.open(folder, verify=True)
    return [(sample.input_ids.tolist(), sample.segment_b) for sample in dataset.fetch(range(len(dataset)))]


def text_of(folder):
    return [token for ids, _ in rows_of(folder) for token in ids if token not in (CLS, SEP)]


def run(texts, tmp_path, tokenizer=None, **options):
    recipe = Recipe(**{"max_seq_length": 16, **options.pop("recipe", {})})
    return prepare(
        texts, tmp_path / "out", tokenizer or make_tokenizer(), recipe=recipe, progress=False, **options
    )


def bare(text, tokenizer=None):
    return (tokenizer or make_tokenizer())(text, add_special_tokens=False)["input_ids"]


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


def test_a_second_run_tokenises_nothing(texts, tmp_path, monkeypatch):
    first = run(texts, tmp_path)
    manifest = (tmp_path / "out" / "manifest.json").read_bytes()
    monkeypatch.setattr(corpus_build, "build_part", None)
    monkeypatch.setattr(corpus_build, "content_of", None)
    second = run(texts, tmp_path)
    assert (second["files_tokenized"], second["text_tokens_tokenized"]) == (0, 0)
    assert second["fingerprint"] == first["fingerprint"] and second["text_tokens"] == first["text_tokens"]
    assert (tmp_path / "out" / "manifest.json").read_bytes() == manifest


def test_touched_or_renamed_files_are_not_tokenised_again(texts, tmp_path):
    first = run(texts, tmp_path)
    os.utime(texts / "a.txt", (1, 1))
    (texts / "b.txt").rename(texts / "b2.txt")
    again = run(texts, tmp_path)
    assert again["files_tokenized"] == 0 and again["fingerprint"] == first["fingerprint"]


def test_a_changed_text_is_prepared_again_and_only_that_one(texts, tmp_path):
    first = run(texts, tmp_path)
    stat = (texts / "b.txt").stat()
    content = (texts / "b.txt").read_text()
    (texts / "b.txt").write_text(content.replace("dog", "cat"))
    os.utime(texts / "b.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (texts / "b.txt").stat().st_size == stat.st_size, "same size, same time of change, other text"
    again = run(texts, tmp_path)
    assert again["files_tokenized"] == 1 and again["fingerprint"] != first["fingerprint"]
    assert WORDS.index("dog") in text_of(tmp_path / "out")
    assert len([p for p in (tmp_path / "out").iterdir() if p.is_dir()]) == 3, "the old part is gone"


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"mode": "line"}},
        {"recipe": {"max_seq_length": 12}},
        {"recipe": {"seed": 1}},
        {"tokenizer": make_tokenizer(lower=False)},
        {"tokenizer": make_tokenizer([*WORDS[:-3], "un", "##s", "##able"])},
    ],
)
@pytest.mark.filterwarnings("ignore:.*unknown to the vocabulary")
def test_another_recipe_or_tokenizer_rebuilds_everything(texts, tmp_path, change):
    run(texts, tmp_path)
    again = run(texts, tmp_path, **change)
    assert again["files_tokenized"] == 3
    assert len([p for p in (tmp_path / "out").iterdir() if p.is_dir()]) == 3
    shutil.move(tmp_path / "out", tmp_path / "rebuilt")
    run(texts, tmp_path, **change)
    assert rows_of(tmp_path / "rebuilt") == rows_of(tmp_path / "out"), "the same as made afresh"


def test_a_removed_file_leaves_the_corpus(texts, tmp_path):
    run(texts, tmp_path)
    (texts / "a.txt").unlink()
    assert run(texts, tmp_path)["files_tokenized"] == 0
    expected = [token for name in "bc" for token in bare((texts / f"{name}.txt").read_text())]
    assert text_of(tmp_path / "out") == expected


def test_a_damaged_part_is_prepared_again(texts, tmp_path, capsys):
    first = run(texts, tmp_path)
    shard = sorted((tmp_path / "out").rglob("*.arrow"))[0]
    os.truncate(shard, 10)
    assert run(texts, tmp_path)["files_tokenized"] == 1
    assert str(shard) in capsys.readouterr().err
    assert TokenDataset.open(tmp_path / "out", verify=True).fingerprint == first["fingerprint"]


@pytest.mark.parametrize("name", ["notes.md", "model.safetensors", ".hidden", "part-notours"])
def test_a_folder_with_anything_else_is_refused_and_untouched(texts, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(UserError, match=rf"holds {name}"):
        run(texts, tmp_path)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [name]


def test_an_interrupted_run_keeps_the_finished_files(texts, tmp_path, monkeypatch):
    real, calls = corpus_build.build_part, []

    def dies_at_the_third(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*arguments, **options)

    monkeypatch.setattr(corpus_build, "build_part", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(texts, tmp_path)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(corpus_build, "build_part", real)
    assert run(texts, tmp_path)["files_tokenized"] == 1
    whole = rows_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    run(texts, tmp_path)
    assert whole == rows_of(tmp_path / "out")


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(corpus, "PIECE_BYTES", 100)


KILLED = """
import sys; from pathlib import Path; from tests.data.test_corpus import *
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


def test_bad_records_are_counted_under_skip_and_not_reused_under_error(texts, tmp_path):
    (texts / "d.txt").write_bytes(b"the cat\n\xff\nthe dog\n")
    summary = run(texts, tmp_path, on_bad_record="skip")
    assert summary["bad_records"] == 1 and "d.txt:2" in summary["bad_record_summary"]
    assert run(texts, tmp_path, on_bad_record="skip")["files_tokenized"] == 0
    with pytest.raises(UserError, match=r"d\.txt:2"):
        run(texts, tmp_path)
    assert len(TokenDataset.open(tmp_path / "out", verify=True)), "the refused run left the corpus as it was"


def test_files_are_shared_out_evenly_and_completely():
    sizes = [5, 90, 10, 40, 30, 20, 0, 0]
    for num_processes in range(1, 10):
        shares = assign(sizes, num_processes)
        assert sorted(i for share in shares for i in share) == list(range(8))
        assert len(shares) == num_processes
        assert shares == assign(sizes, num_processes)
    assert max(sum(sizes[i] for i in share) for share in assign(sizes, 2)) <= 105


def test_pregenerated_rows_are_taken_as_they_are(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    row = {"tokens": ["[CLS]", "the", "[SEP]", "cat", "##s", "[SEP]"], "segment_ids": [0, 0, 0, 1, 1, 1]}
    single = {"tokens": ["[CLS]", "dog", "[SEP]"], "segment_ids": [0, 0, 0], "is_random_next": False}
    (folder / "epoch_0.json").write_text(json.dumps(row) + "\n" + json.dumps(single) + "\n")
    (folder / "epoch_0_metrics.json").write_text('{"num_training_examples": 2, "max_seq_len": 16}')
    summary = run(folder, tmp_path)
    assert summary["files"] == 1
    cats = [CLS, WORDS.index("the"), SEP, WORDS.index("cat"), WORDS.index("##s"), SEP]
    assert rows_of(tmp_path / "out") == [(cats, 3), ([CLS, WORDS.index("dog"), SEP], 3)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["[CLS]", "the"], "segment_ids": [0]}, "not two lists of one length"),
        ({"tokens": ["[CLS]", "the"], "segment_ids": [1, 0]}, "zeros followed by ones"),
        ({"tokens": ["the"] * 17, "segment_ids": [0] * 17}, "17 tokens, where --max_seq_length is 16"),
        ({"tokens": []}, "not two lists"),
    ],
)
def test_bad_pregenerated_rows_are_named(tmp_path, row, message):
    good = {"tokens": ["[CLS]", "the", "[SEP]"], "segment_ids": [0, 0, 0]}
    (tmp_path / "e.json").write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=rf"e\.json:2: .*{message}"):
        run(tmp_path / "e.json", tmp_path)


def test_a_wrong_vocabulary_is_warned_of_with_the_share(tmp_path):
    (tmp_path / "a.txt").write_text("the cat \u4e2d\u6587\n")
    with pytest.warns(UserWarning, match=r"50\.0 % of the tokens.*unknown to the vocabulary"):
        summary = run(tmp_path / "a.txt", tmp_path)
    assert summary["unknown_tokens"] == 2


def test_markers_in_the_text_do_not_become_structure(tmp_path):
    (tmp_path / "a.txt").write_text("the cat [SEP] [MASK] the dog\n" * 20)
    with pytest.warns(UserWarning, match="unknown"):
        run(tmp_path / "a.txt", tmp_path)
    tokens = Counter(token for ids, _ in rows_of(tmp_path / "out") for token in ids)
    assert tokens[WORDS.index("[MASK]")] == 0
    assert all(ids.count(SEP) <= 2 for ids, _ in rows_of(tmp_path / "out"))


def test_tables_and_archives_are_corpora_too(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.csv").write_text('id,text\n1,"the cat\nsat"\n')
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "the dog"}\n'))
    summary = run(folder, tmp_path)
    assert text_of(tmp_path / "out") == bare("the cat sat the dog") and summary["documents"] == 2


def test_user_mistakes(texts, tmp_path):
    for recipe, message in [
        ({"mode": "triples"}, "--mode triples"),
        ({"max_seq_length": 4}, "max_seq_length 4"),
    ]:
        with pytest.raises(UserError, match=message):
            run(texts, tmp_path, recipe=recipe)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="no text in 1 files"):
        run(tmp_path / "empty.txt", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare(texts, tmp_path / "file", make_tokenizer())


def test_output_inside_the_input_folder_is_no_input(texts):
    for _ in range(2):
        summary = prepare(texts, texts / "out", make_tokenizer(), progress=False)
        assert summary["files"] == 3


def test_a_dry_run_writes_nothing(texts, tmp_path):
    summary = run(texts, tmp_path, dry_run=True)
    assert summary["files_tokenized"] == 3 and summary["bytes_to_read"] > 0
    assert not (tmp_path / "out").exists()


def test_progress_outside_a_terminal_is_lines(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(corpus_build, "PLAIN_PROGRESS_EVERY_S", 0.0)
    prepare(texts, tmp_path / "out", make_tokenizer())
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("tokenising") for line in lines)
    assert "100%" in lines[-1] and "\r" not in "".join(lines)


def test_progress_moves_while_the_processes_are_inside_their_pieces(tmp_path, monkeypatch, capsys):
    (tmp_path / "texts").mkdir()
    for name in "ab":
        text = "".join(f"{name} {line(i, 11)}\n" for i in range(60_000))
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    monkeypatch.setattr(corpus_build, "PLAIN_PROGRESS_EVERY_S", 0.0)
    monkeypatch.setattr(corpus_build, "POLL_S", 0.01)
    prepare(tmp_path / "texts", tmp_path / "out", make_tokenizer(), num_workers=2)
    lines = capsys.readouterr().err.splitlines()
    shares = [int(entry.split("%")[0].split()[-1]) for entry in lines if "0/2 pieces" in entry]
    assert shares == sorted(shares) and len({share for share in shares if 0 < share < 100}) >= 3
    assert "100%" in lines[-1] and "B/s" in lines[-1] and any("<00:" in entry for entry in lines)
