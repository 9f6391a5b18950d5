"""Text goes in and out of augmentation unchanged, whatever it holds and however it is laid out."""

import csv
import json
import random
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage_runs import task
from tiny_masked_lm import save_masked_lm

from tinybert_dist.config import UserError
from tinybert_dist.data.glue import glue_task
from tinybert_dist.data.task_files import read_records
from tinybert_dist.data.text import BadRecords
from tinybert_dist.stages.augment import AugmentConfig, run

NASTY = [
    *('"', '""', "'", "''", "\\", "\\t", "\\n", "\\\\", ",", ";", "#", "|", "%s", "{}", "<br />", "&quot;"),
    *("  ", "\u00a0", "\u2028", "\x0b", "\u00e9", "e\u0301", "\u597d", "\U0001f600", "=1+1", "N/A", "null"),
]
WORDS = ["movie", "great", "film", "plot", "the", "boring", "unwatchable"]
# what a table's field may hold and a line may not
BREAKS = ["\t", "\n"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_masked_lm(tmp_path_factory.mktemp("formats") / "model")


def nasty_texts(seed, num=24, more=()):
    draw = random.Random(seed)
    texts = []
    for _ in range(num):
        parts = [draw.choice(draw.choice([NASTY, WORDS, [*more, "film"]])) for _ in range(draw.randint(2, 7))]
        # the break before a word: at the end of a field it would be no part of the text
        texts.append(draw.choice(["", " "]).join(["movie", *parts, "great"]))
    return texts


def augmented(model_dir, tmp_path, **more):
    config = {"pretrained_bert_model": model_dir, "output_dir": tmp_path / "out"} | more
    paths = {name: str(value) for name, value in config.items() if name.endswith(("model", "dir", "path"))}
    return run(AugmentConfig(**{"N": 4, "p": 0.6} | config | paths))


def check(rows, originals, text_columns):
    """Every original as it was, in order; each followed by rows that differ in one text, quotes kept."""
    groups = []
    for row in rows:
        if len(groups) < len(originals) and row == originals[len(groups)]:
            groups.append([])
        else:
            groups[-1].append(row)
    assert len(groups) == len(originals) and sum(map(len, groups)) > len(originals)
    for original, new_rows in zip(originals, groups, strict=True):
        for row in new_rows:
            changed = [c for c, (old, new) in enumerate(zip(original, row, strict=True)) if old != new]
            assert len(changed) == 1 and changed[0] in text_columns
            old, new = original[changed[0]], row[changed[0]]
            assert [new.count(mark) for mark in '"\\'] == [old.count(mark) for mark in '"\\']


def tsv_rows(path):
    return [line.split("\t") for line in path.read_bytes().decode("utf-8").split("\n")[:-1]]


def parquet_rows(folder):
    names = [part["name"] for part in json.loads((folder / "manifest.json").read_text())["parts"]]
    tables = [pq.read_table(folder / name) for name in names]
    return tables[0].column_names, [list(row.values()) for t in tables for row in t.to_pylist()]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_glue_layout(tmp_path, model_dir, ends):
    first, second = nasty_texts(1), nasty_texts(2)
    rows = [[str(i % 2), "7", '"8"', a, b] for i, (a, b) in enumerate(zip(first, second, strict=True))]
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    lines = [header, *("\t".join(row) for row in rows)]
    (tmp_path / "train.tsv").write_bytes((ends.join(lines) + ends).encode("utf-8"))
    augmented(model_dir, tmp_path, glue_dir=tmp_path, task_name="MRPC")
    out = tsv_rows(tmp_path / "out" / "train_aug.tsv")
    assert out[0] == header.split("\t")
    check(out[1:], rows, {3, 4})
    augmented(model_dir, tmp_path, glue_dir=tmp_path, task_name="MRPC", output_format="parquet")
    names, again = parquet_rows(tmp_path / "out" / "train_aug")
    assert names == out[0] and again == out[1:]
    spec = glue_task("MRPC")
    for name in ("train_aug.tsv", "train_aug"):
        records = read_records(tmp_path / "out" / name, spec, BadRecords(), "train")
        assert [(*record.texts, record.label) for record in records] == [(r[3], r[4], r[0]) for r in again]


@pytest.mark.parametrize("num_texts", [1, 2])
def test_lines(tmp_path, model_dir, num_texts):
    columns = [nasty_texts(seed) for seed in range(num_texts)]
    rows = [[*texts, "yes"] for texts in zip(*columns, strict=True)]
    (tmp_path / "my.txt").write_bytes("".join("\t".join(row) + "\n" for row in rows).encode("utf-8"))
    augmented(model_dir, tmp_path, data_path=tmp_path / "my.txt")
    out = tsv_rows(tmp_path / "out" / "my_aug.txt")
    check(out, rows, set(range(num_texts)))
    augmented(model_dir, tmp_path, data_path=tmp_path / "my.txt", output_format="parquet")
    names, again = parquet_rows(tmp_path / "out" / "my_aug")
    assert names == [*["text", "text_pair"][:num_texts], "label"] and again == out


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_tables(tmp_path, model_dir, kind):
    rows = [[text, f"{i}", 'a "note"'] for i, text in enumerate(nasty_texts(5, more=BREAKS))]
    names = ["text", "label", "note"]
    path = tmp_path / f"train.{kind}"
    if kind == "csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    elif kind == "jsonl":
        objects = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        path.write_text("\n".join(objects) + "\n", encoding="utf-8")
    else:
        columns = [pa.array(column) for column in zip(*rows, strict=True)]
        pq.write_table(pa.Table.from_arrays(columns, names), path)
    # Parquet holds what a table's field may hold
    augmented(model_dir, tmp_path, data_path=path, output_format="parquet")
    header, out = parquet_rows(tmp_path / "out" / "train_aug")
    assert header == names and any("\n" in row[0] for row in out) and any("\t" in row[0] for row in out)
    check(out, rows, {0})
    # in lines its breaks are spaces
    augmented(model_dir, tmp_path, data_path=path)
    lines = tsv_rows(tmp_path / "out" / "train_aug.tsv")
    flat = [[" ".join(row[0].splitlines()).replace("\t", " "), *row[1:]] for row in rows]
    assert lines[0] == names
    check(lines[1:], flat, {0})


def test_parquet_shards_feed_task_distillation(tmp_path, model_dir, workspace, general_student, capsys):
    data = tmp_path / "task"
    shutil.copytree(workspace / "task", data)
    summary = augmented(
        model_dir, tmp_path, data_path=data, output_dir=data, output_format="parquet", max_examples=20
    )
    assert summary["rows"] > 200 and (data / "train_aug" / "manifest.json").is_file()
    steps = {"student_model": general_student, "data_dir": data, "aug_train": True}
    assert task(workspace, tmp_path / "step1", **steps)["outcome"] == "finished"
    assert re.search(rf"training rows +{summary['rows']} ", capsys.readouterr().out)


@pytest.mark.parametrize("output_format", ["tsv", "parquet"])
def test_unlabelled_texts_feed_task_distillation(
    tmp_path, model_dir, workspace, general_student, sentences, capsys, output_format
):
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{text}\n" for text in sentences[300:340]), encoding="utf-8")
    summary = augmented(model_dir, tmp_path, data_path=lines, unlabelled=True, output_format=output_format)
    if output_format == "parquet":
        new = tmp_path / "out" / "lines_aug"
        texts = [text for (text,) in parquet_rows(new)[1]]
    else:
        new = tmp_path / "out" / "lines_aug.txt"
        texts = [text for (text,) in tsv_rows(new)]
    assert len(texts) == summary["rows"] > 60 and set(sentences[300:340]) <= set(texts)
    outcome = task(
        workspace,
        tmp_path / "step2",
        student_model=general_student,
        pred_distill=True,
        unlabelled_file_path=new,
    )
    assert outcome["outcome"] == "finished"
    assert re.search(rf"training rows +{160 + len(texts)} ", capsys.readouterr().out)


def test_unlabelled_pairs_and_tables(tmp_path, model_dir):
    rows = [["great movie", "boring film"], ["the dog", "very good"]]
    lines = tmp_path / "pairs.txt"
    lines.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    augmented(model_dir, tmp_path, data_path=lines, unlabelled=True)
    out = tsv_rows(tmp_path / "out" / "pairs_aug.txt")
    check(out, rows, {0, 1})  # the second is a text as well, not a label
    assert any(row[1] not in {"boring film", "very good"} for row in out)
    table = tmp_path / "table.csv"
    table.write_text(
        "id,a,b\n" + "".join(f"{i},{a},{b}\n" for i, (a, b) in enumerate(rows)), encoding="utf-8"
    )
    columns = {"text_column": "a", "text_pair_column": "b"}
    augmented(model_dir, tmp_path, data_path=table, unlabelled=True, **columns)
    assert tsv_rows(tmp_path / "out" / "table_aug.txt") == out
    augmented(model_dir, tmp_path, data_path=table, unlabelled=True, output_format="parquet", **columns)
    assert parquet_rows(tmp_path / "out" / "table_aug") == (["text", "text_pair"], out)


def test_unlabelled_mistakes(tmp_path, model_dir):
    lines = tmp_path / "lines.txt"
    lines.write_text("a\tb\tc\n")
    table = tmp_path / "table.csv"
    table.write_text("text,label\ngreat movie,1\n")
    for more, message in (
        ({"data_path": lines}, "most lines of .* have 3 tab-separated fields"),
        ({"data_path": table}, "Name the column of its text with --text_column"),
        ({"glue_dir": tmp_path, "task_name": "SST-2"}, "give the texts as --data_path"),
    ):
        with pytest.raises(UserError, match=message):
            augmented(model_dir, tmp_path, unlabelled=True, **more)
