"""Training rows from folders of shards: a task's own, those that augment writes, text without labels."""

import csv
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from task_rows import prepare, rows_of, texts_of, write_parquet, write_tsv

from tinybert_dist.config import UserError
from tinybert_dist.data.tasks import TaskOptions, load_task
from tinybert_dist.data.text import BadRecords

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
