"""Training rows as token shards: what is in them, when they are made anew, and what a folder of shards is."""

import csv
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertTokenizerFast

from tinybert_dist.config import UserError
from tinybert_dist.data import encoding
from tinybert_dist.data.encoding import Example, encode
from tinybert_dist.data.task_tokens import prepare_rows
from tinybert_dist.data.tasks import TaskOptions, load_task
from tinybert_dist.data.text import BadRecords

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(20))]


def make_tokenizer(folder, words):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return BertTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("vocabulary"), WORDS)


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


def prepare(folder, tokenizer, policy="error", with_unlabelled=True, **options):
    """(rows, bad records) of a task folder; its tokens go to `folder`/tokens."""
    parsed = TaskOptions(data_dir=str(folder), **{"max_seq_length": 8, **options})
    bad = BadRecords(policy)
    task = load_task(parsed, BadRecords("skip"), ("dev",))
    return prepare_rows(parsed, task, tokenizer, folder / "tokens", bad, with_unlabelled), bad


def rows_of(dataset):
    samples = dataset.fetch(range(len(dataset)))
    return [([WORDS[i] for i in s.input_ids], s.segment_b, s.label) for s in samples]


def texts_of(dataset):
    return [" ".join(words[1:-1]) for words, _, _ in rows_of(dataset)]


def write_tsv(file, rows, header="sentence\tlabel"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")


def write_parquet(file, rows, columns=("sentence", "label")):
    file.parent.mkdir(parents=True, exist_ok=True)
    names = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
    pq.write_table(pa.table(names), file)


@pytest.fixture
def task(tmp_path):
    """train.tsv of 30 rows with labels a and b, dev.tsv, more.txt of 5 texts."""
    folder = tmp_path / "task"
    write_tsv(folder / "train.tsv", [(f"w{i % 20} w{i % 7}", "ab"[i % 2]) for i in range(30)])
    write_tsv(folder / "dev.tsv", [("w1", "a"), ("w2", "b")])
    (folder / "more.txt").write_text("".join(f"w{i}\n" for i in range(5)))
    return folder


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


# --- a folder of shards -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
@pytest.mark.parametrize("numbered", [False, True], ids=["folder", "numbered"])
def test_shards_are_read_in_the_order_of_their_names(tmp_path, tokenizer, suffix, numbered):
    def place(split, i):
        name = f"{split}-{i:05d}-of-00003.{suffix}" if numbered else f"{split}/part-{i}.{suffix}"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        return tmp_path / name

    for split in ("train", "dev"):
        for i in (2, 0, 1):
            rows = [(f"w{2 * i}", "a"), (f"w{2 * i + 1}", "b")]
            if suffix == "parquet":
                write_parquet(place(split, i), rows)
            elif suffix == "jsonl":
                lines = [json.dumps({"sentence": text, "label": label}) for text, label in rows]
                place(split, i).write_text("\n".join(lines) + "\n")
            else:
                with place(split, i).open("w", newline="") as file:
                    writer = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",")
                    writer.writerows([("sentence", "label"), *rows])
        if not numbered:
            (tmp_path / split / "manifest.json").write_text("{}")
            (tmp_path / split / ".part-9.parquet").write_text("hidden")
    rows, _ = prepare(tmp_path, tokenizer)
    assert texts_of(rows.dataset) == [f"w{i}" for i in range(6)]
    dev = load_task(TaskOptions(data_dir=str(tmp_path)), BadRecords(), ("dev",))
    assert [example.text for example in dev.splits["dev"]] == [f"w{i}" for i in range(6)]
    assert len(set(dev.origins["dev"].lines.tolist())) == 6 and ":" in dev.origins["dev"].lines[0]


def test_shards_that_do_not_fit_together_are_named(task, tokenizer):
    (task / "train.tsv").unlink()
    write_parquet(task / "train" / "a.parquet", [("w1", "a"), ("w2", "b")])
    write_parquet(task / "train" / "b.parquet", [("w3", "a", "1")], ("sentence", "label", "weight"))
    with pytest.raises(
        UserError, match=r"b\.parquet: its columns are .*weight; those of a\.parquet: sentence,"
    ):
        prepare(task, tokenizer)
    (task / "train" / "b.parquet").rename(task / "train" / "b.csv")
    with pytest.raises(UserError, match=r"train: a\.parquet and b\.csv are of two formats"):
        prepare(task, tokenizer)
    shutil.rmtree(task / "train")
    write_parquet(task / "train-00000-of-00002.parquet", [("w1", "a"), ("w2", "b")])
    with pytest.raises(UserError, match=r"train-\*-of-00002\.parquet: 1 of 2 files are there"):
        prepare(task, tokenizer)
    write_tsv(task / "train.tsv", [("w1", "a")])
    with pytest.raises(UserError, match=r"both train-\*-of-00002\.parquet and train\.tsv could be the train"):
        prepare(task, tokenizer)


def test_an_empty_shard_holds_nothing(task, tokenizer):
    (task / "train.tsv").unlink()
    write_parquet(task / "train" / "a.parquet", [("w1", "a"), ("w2", "b")])
    empty = pa.table({"sentence": pa.array([], pa.string()), "label": pa.array([], pa.string())})
    for name in ("0", "b"):
        pq.write_table(empty, task / "train" / f"{name}.parquet")
    write_parquet(task / "train" / "c.parquet", [("w3", "b")])
    assert texts_of(prepare(task, tokenizer)[0].dataset) == ["w1", "w2", "w3"]


# --- what augment writes ------------------------------------------------------------------------------------


def augmented(folder, rows, columns):
    for i, row in enumerate(rows):
        write_parquet(folder / "train_aug" / f"part-{i:05d}.parquet", [row], columns)
    parts = [{"name": file.name} for file in (folder / "train_aug").glob("*.parquet")]
    (folder / "train_aug" / "manifest.json").write_text(json.dumps({"parts": parts}))


@pytest.mark.parametrize(
    ("name", "header", "row", "columns", "augmented_row"),
    [
        ("SST-2", "sentence\tlabel", "w1\t1", ("sentence", "label"), ("w2", "0")),
        (
            "MRPC",
            "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
            "1\t7\t8\tw1\tw2",
            ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
            ("0", "7", "8", "w2", "w3"),
        ),
        ("CoLA", "", "gj04\t1\t\tw1", ("text", "label"), ("w2", "0")),
    ],
    ids=["SST-2", "MRPC", "CoLA"],
)
def test_augmented_shards_of_glue(tmp_path, tokenizer, name, header, row, columns, augmented_row):
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("\n".join([*([header] if header else []), row]) + "\n")
    augmented(tmp_path, [augmented_row, augmented_row], columns)
    rows, _ = prepare(tmp_path, tokenizer, task_name=name, aug_train=True)
    pair = ["w2", "[SEP]", "w3"] if name == "MRPC" else ["w2"]
    assert rows_of(rows.dataset) == [(["[CLS]", *pair, "[SEP]"], 3, 0.0)] * 2


def test_augmented_shards_of_text_without_header(tmp_path, tokenizer):
    (tmp_path / "train.txt").write_text("w1\tw2\ta\nw3\tw4\tb\n")
    (tmp_path / "eval.txt").write_text("w1\tw2\ta\n")
    augmented(tmp_path, [("w5", "w6", "b"), ("w7", "w8", "a")], ("text", "text_pair", "label"))
    rows, _ = prepare(tmp_path, tokenizer, aug_train=True)
    assert rows_of(rows.dataset) == [
        (["[CLS]", "w5", "[SEP]", "w6", "[SEP]"], 3, 1.0),
        (["[CLS]", "w7", "[SEP]", "w8", "[SEP]"], 3, 0.0),
    ]


def test_augmented_folder_and_file_and_an_unfinished_folder(task, tokenizer):
    augmented(task, [("w5", "b"), ("w6", "a")], ("sentence", "label"))
    assert texts_of(prepare(task, tokenizer, aug_train=True)[0].dataset) == ["w5", "w6"]
    write_tsv(task / "train_aug.tsv", [("w7", "a")])
    with pytest.raises(UserError, match=r"both train_aug and train_aug\.tsv could be the train_aug data"):
        prepare(task, tokenizer, aug_train=True)
    (task / "train_aug.tsv").unlink()
    (task / "train_aug" / "part-00001.parquet").rename(task / "train_aug" / "part-00002.parquet")
    with pytest.raises(
        UserError, match=r"train_aug: part-00001\.parquet is there or in manifest\.json, and not"
    ):
        prepare(task, tokenizer, aug_train=True)
    (task / "train_aug" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"train_aug: no manifest\.json: not finished. Run the augment stage"):
        prepare(task, tokenizer, aug_train=True)
    assert len(prepare(task, tokenizer)[0].dataset) == 30, "nobody asked for it"


def test_a_stray_label_that_augmentation_multiplied_is_no_class(tmp_path, tokenizer):
    rows = [(f"w{i % 20}", "ab"[i % 2]) for i in range(200)]
    write_tsv(tmp_path / "train.tsv", [*rows, ("w3", "oops")])
    write_tsv(tmp_path / "dev.tsv", rows[:2])
    write_tsv(tmp_path / "train_aug.tsv", [*rows, *[("w3", "oops")] * 20])
    with pytest.raises(UserError, match=r"train_aug\.tsv:202: label 'oops' is not one of .*Allowed: a, b\."):
        prepare(tmp_path, tokenizer, aug_train=True)


# --- text without labels ------------------------------------------------------------------------------------


def test_unlabelled_lines(tmp_path, tokenizer):
    for split in ("train", "dev"):
        write_tsv(tmp_path / f"{split}.tsv", [("w1", "w2", "1"), ("w3", "w4", "0")], "text_a\ttext_b\tlabel")
    (tmp_path / "more.txt").write_text("w5\tw6\n\nw7\nw8\tw9\n")
    options = {"unlabelled_file_path": str(tmp_path / "more.txt")}
    with pytest.raises(UserError, match=r"more\.txt:3: 1 tab-separated fields.*two texts with a tab between"):
        prepare(tmp_path, tokenizer, **options)
    rows, bad = prepare(tmp_path, tokenizer, policy="skip", **options)
    assert bad.total == 1 and rows_of(rows.dataset)[2:] == [
        (["[CLS]", "w5", "[SEP]", "w6", "[SEP]"], 3, None),
        (["[CLS]", "w8", "[SEP]", "w9", "[SEP]"], 3, None),
    ]
    with pytest.raises(UserError, match=r"--unlabelled_file_path .*none: no such file"):
        prepare(tmp_path, tokenizer, unlabelled_file_path=str(tmp_path / "none"))
    (tmp_path / "more.txt").write_text("\n\n")
    with pytest.raises(UserError, match=r"more\.txt: no usable example"):
        prepare(tmp_path, tokenizer, **options)


@pytest.mark.parametrize(
    "columns", [("sentence", "label"), ("text", "id")], ids=["as augmented", "own names"]
)
def test_unlabelled_tables(task, tokenizer, columns):
    """Labels in them are not looked at: these are none of the task's."""
    for i in range(2):
        write_parquet(task / "more_aug" / f"part-{i}.parquet", [(f"w{i}", "7"), (f"w{i + 2}", "8")], columns)
    rows, _ = prepare(task, tokenizer, unlabelled_file_path=str(task / "more_aug"))
    assert texts_of(rows.dataset)[30:] == ["w0", "w2", "w1", "w3"]
    assert np.isnan(rows.dataset.labels[30:]).all() and not np.isnan(rows.dataset.labels[:30]).any()


def test_unlabelled_tables_with_other_texts_are_named(task, tokenizer):
    write_parquet(task / "more.parquet", [("w1", "w2")], ("premise", "hypothesis"))
    with pytest.raises(
        UserError, match=r"more\.parquet: texts in its columns premise, hypothesis, where .* 1"
    ):
        prepare(task, tokenizer, unlabelled_file_path=str(task / "more.parquet"))
    write_parquet(task / "more.parquet", [("w1",)], ("body",))
    with pytest.raises(UserError, match=r"more\.parquet: of its columns body none has a usual name"):
        prepare(task, tokenizer, unlabelled_file_path=str(task / "more.parquet"))
