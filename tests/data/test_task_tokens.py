"""Training rows as token shards: what is in them, and when they are made anew."""

import shutil

import pytest
from task_rows import WORDS, make_tokenizer, prepare, rows_of, write_tsv

from tinybert_dist.config import UserError
from tinybert_dist.data import encoding
from tinybert_dist.data.encoding import Example, encode
from tinybert_dist.data.tasks import TaskOptions, load_task
from tinybert_dist.data.text import BadRecords


@pytest.fixture
def calls(monkeypatch):
    """Examples given to the tokenizer, call by call."""
    sizes, tokenise = [], encoding._tokenise
    monkeypatch.setattr(
        encoding,
        "_tokenise",
        lambda examples, *rest: sizes.append(len(examples)) or tokenise(examples, *rest),
    )
    return sizes


# --- what is in them ----------------------------------------------------------------------------------------


def test_rows_are_those_of_the_examples_in_their_order(task, tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(encoding, "ROWS_PER_CALL", 7)
    rows, _ = prepare(task, tokenizer, max_seq_length=3, unlabelled_file_path=str(task / "more.txt"))
    train = load_task(TaskOptions(data_dir=str(task)), BadRecords(), ("train",)).splits["train"]
    expected = encode([*train, *(Example(f"w{i}", None, None) for i in range(5))], tokenizer, 3)
    assert rows_of(rows.dataset) == rows_of(expected) and len(rows.dataset) == rows.num_tokenized == 35
    assert "train: 30 examples" in rows.description and "(a 15, b 15)" in rows.description
    assert "unlabelled: 5 examples" in rows.description and "35 rows tokenised now" in rows.description
    assert "30 of 35 examples (85.7 %) cut to 3 tokens, first train.tsv:2" in caplog.text
    assert len(prepare(task, tokenizer, with_unlabelled=False, unlabelled_file_path="x")[0].dataset) == 30


def test_a_regression_keeps_its_values(tmp_path, tokenizer):
    for name in ("train", "dev"):
        write_tsv(tmp_path / f"{name}.tsv", [("w1", "0.5"), ("w2", "-3")])
    rows, _ = prepare(tmp_path, tokenizer, task_mode="regression")
    assert [label for *_, label in rows_of(rows.dataset)] == [0.5, -3.0]


# --- when they are made anew --------------------------------------------------------------------------------


def test_unchanged_data_are_not_tokenised_again(task, tokenizer, calls):
    first, _ = prepare(task, tokenizer, task_name="t")
    assert sum(calls) == 30
    again, _ = prepare(task, tokenizer, task_name="t")
    assert sum(calls) == 30 and again.num_tokenized == 0 and "all rows tokenised before" in again.description
    assert again.dataset.fingerprint == first.dataset.fingerprint
    moved = task.with_name("moved")
    shutil.move(task, moved)
    assert prepare(moved, tokenizer, task_name="t")[0].num_tokenized == 0, "content counts, not the place"


@pytest.mark.parametrize("change", ["text", "vocabulary", "max_seq_length", "labels", "skip", "unlabelled"])
def test_whatever_changes_them_makes_them_anew(task, tokenizer, tmp_path, change):
    prepare(task, tokenizer)
    options = {"max_seq_length": {"max_seq_length": 4}, "labels": {"labels": ["b", "a"]}}.get(change, {})
    if change == "text":
        write_tsv(task / "train.tsv", [("w9", "a"), ("w2", "b")])
    elif change == "vocabulary":
        tokenizer = make_tokenizer(tmp_path / "other", [*WORDS[:-2], WORDS[-1], WORDS[-2]])
    elif change == "skip":
        options = {"policy": "skip"}
    elif change == "unlabelled":
        options = {"unlabelled_file_path": str(task / "more.txt")}
    rows, _ = prepare(task, tokenizer, **options)
    assert rows.num_tokenized == len(rows.dataset) > 0
    assert len(list((task / "tokens").iterdir())) == 1, "what was made before is gone"


def test_what_was_passed_over_is_said_again(task, tokenizer):
    write_tsv(task / "train.tsv", [("w1", "a"), ("w2", "b", "w3"), ("w4", "b")])
    reports = [prepare(task, tokenizer, policy="skip")[1] for _ in range(2)]
    assert reports[0].counts == reports[1].counts and reports[0].total == 1
    assert "first train.tsv:3" in reports[1].summary()


def test_a_damaged_shard_is_named_and_its_rows_made_anew(task, tokenizer, capsys):
    first = rows_of(prepare(task, tokenizer)[0].dataset)
    shard = next((task / "tokens").glob("rows-*/tokens-00000.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    again, _ = prepare(task, tokenizer)
    assert "tokens-00000.arrow: its sha256 is not the one" in capsys.readouterr().err
    assert again.num_tokenized == 30 and rows_of(again.dataset) == first


def test_nothing_half_done_is_taken_for_whole(task, tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "ROWS_PER_CALL", 10)
    with (task / "train.tsv").open("a") as file:
        file.write("w1\tc\n")
    with pytest.raises(UserError, match=r"train\.tsv:32: label 'c' is not one of the labels"):
        prepare(task, tokenizer, labels=["a", "b"])
    assert not list((task / "tokens").iterdir())
    whole, _ = prepare(task, tokenizer, policy="skip", labels=["a", "b"])
    # as SIGKILL leaves it: shards, and no manifest
    killed = task / "tokens" / ".rows-0123456789abcdef.7.tmp"
    folder = next((task / "tokens").glob("rows-*"))
    folder.rename(killed)
    (killed / "manifest.json").unlink()
    again, _ = prepare(task, tokenizer, policy="skip", labels=["a", "b"])
    assert again.num_tokenized == 30 and rows_of(again.dataset) == rows_of(whole.dataset)
    assert not killed.exists()
