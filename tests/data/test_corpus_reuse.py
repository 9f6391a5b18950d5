"""What a run takes over from the runs before it, and what it makes anew."""

import os
import shutil

import pytest
from corpus_runs import WORDS, bare, make_tokenizer, rows_of, run, text_of

from tinybert_dist.config import UserError
from tinybert_dist.data import corpus_build
from tinybert_dist.data.tokens import TokenDataset


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


def test_bad_records_are_counted_under_skip_and_not_reused_under_error(texts, tmp_path):
    (texts / "d.txt").write_bytes(b"the cat\n\xff\nthe dog\n")
    summary = run(texts, tmp_path, on_bad_record="skip")
    assert summary["bad_records"] == 1 and "d.txt:2" in summary["bad_record_summary"]
    assert run(texts, tmp_path, on_bad_record="skip")["files_tokenized"] == 0
    with pytest.raises(UserError, match=r"d\.txt:2"):
        run(texts, tmp_path)
    assert len(TokenDataset.open(tmp_path / "out", verify=True)), "the refused run left the corpus as it was"
