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

import pytest
from transformers import BertTokenizerFast

from tinybert_dist.config import UserError
from tinybert_dist.data import corpus
from tinybert_dist.data.corpus import Recipe, prepare
from tinybert_dist.data.tokens import TokenDataset

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat dog sat on a mat . , ##s un ##able".split()
CLS, SEP = 2, 3


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
    assert [item["name"] for item in header["sources"]] == ["a.txt", "b.txt", "c.txt"]


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
    monkeypatch.setattr(corpus, "build_part", None)
    monkeypatch.setattr(corpus, "sha256_of", None)
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
    real, calls = corpus.build_part, []

    def dies_at_the_third(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*arguments, **options)

    monkeypatch.setattr(corpus, "build_part", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(texts, tmp_path)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(corpus, "build_part", real)
    assert run(texts, tmp_path)["files_tokenized"] == 1
    whole = rows_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    run(texts, tmp_path)
    assert whole == rows_of(tmp_path / "out")


def test_a_killed_process_leaves_no_half_part(texts, tmp_path):
    # a named pipe as second file: the process hangs in it with the first one finished, and is killed
    os.mkfifo(texts / "zz.txt")
    (texts / "b.txt").unlink()
    (texts / "c.txt").unlink()
    code = (
        "import sys; from tests.data.test_corpus import *; from pathlib import Path\n"
        "from tinybert_dist.data.corpus_part import Source\n"
        "import tinybert_dist.data.corpus as c\n"
        "t = Path(sys.argv[1]); files = ['a.txt', 'zz.txt']\n"
        "c.find_sources = lambda *_: [Source(str(t / 'texts' / f), f, 1, 1, 1, f) for f in files]\n"
        "run(t / 'texts', t)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    out = tmp_path / "out"
    deadline = time.monotonic() + 60
    while not list(out.glob(".part-*.tmp")) or not list(out.glob("part-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(list(out.glob(".part-*.tmp"))) == 1, "killed inside the second file"
    (texts / "zz.txt").unlink()
    (texts / "zz.txt").write_text("the cat\n")
    run(texts, tmp_path)
    assert text_of(out) == bare((texts / "a.txt").read_text()) + bare("the cat")
    assert not list(out.glob(".part-*"))


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
        shares = corpus.assign(sizes, num_processes)
        assert sorted(i for share in shares for i in share) == list(range(8))
        assert len(shares) == num_processes
        assert shares == corpus.assign(sizes, num_processes)
    assert max(sum(sizes[i] for i in share) for share in corpus.assign(sizes, 2)) <= 105


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
    monkeypatch.setattr(corpus, "PLAIN_PROGRESS_EVERY_S", 0.0)
    prepare(texts, tmp_path / "out", make_tokenizer())
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("tokenising") for line in lines)
    assert "100%" in lines[-1] and "\r" not in "".join(lines)
