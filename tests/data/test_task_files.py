"""Files of a task folder: formats, columns, raw rows, and what is said of folders that do not fit."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from task_folders import load, tsv, write

from tinybert_dist.config import UserError
from tinybert_dist.data.encoding import Example
from tinybert_dist.data.glue import glue_task
from tinybert_dist.data.task_files import read_raw_rows
from tinybert_dist.data.tasks import TaskOptions, find_task


def test_real_chinese_table_by_default_names_and_by_given_names(shared_data):
    folder = shared_data / "zh" / "ChnSentiCorp"
    found, _ = load(folder, "train", "dev", "test")
    named, _ = load(folder, "train", "dev", "test", text_column="text_a", label_column="label")
    assert [len(found.splits[s]) for s in ("train", "dev", "test")] == [9600, 1200, 1200]
    assert found.splits == named.splits and found.fingerprint == named.fingerprint
    assert found.spec.labels == ("0", "1") and found.splits["test"][0].label is not None


def test_real_dialogue_names_its_malformed_rows(shared_data):
    with pytest.raises(UserError, match=r"train\.txt:9088: .*on_bad_record skip"):
        load(shared_data / "zh" / "dialogue")
    data, bad = load(shared_data / "zh" / "dialogue", policy="skip")
    assert len(data.splits["train"]) == 11294 and len(data.splits["dev"]) == 3000
    assert bad.total == 2 and data.spec.labels == ("0", "1")
    missing = set(range(1, 11297)) - set(data.origins["train"].lines.tolist())
    assert missing == {9088, 9914}


def test_text_files_one_or_two_texts(tmp_path):
    one = write(
        tmp_path / "one", train_txt=tsv("a|yes", "b|no"), eval_txt=tsv("c|no"), test_txt=tsv("d", "e")
    )
    data, _ = load(one, "train", "dev", "test")
    assert data.spec.metrics == ("accuracy", "f1") and data.spec.labels == ("no", "yes")
    assert data.splits["train"][0] == Example("a", None, 1.0)
    assert data.splits["test"] == [Example("d", None, None), Example("e", None, None)]
    two = write(tmp_path / "two", train_txt=tsv("a|b|1", "c|d|0", "e|f|0", "short|0"), eval_txt=tsv("g|h|1"))
    with pytest.raises(UserError, match=r"train\.txt:4: 2 tab-separated columns where 3"):
        load(two)
    data, bad = load(two, policy="skip")
    assert data.splits["train"][0] == Example("a", "b", 1.0) and bad.total == 1
    with pytest.raises(UserError, match="no header"):
        load(one, text_column="text")
    four = write(tmp_path / "four", train_txt=tsv("a|b|c|1"), eval_txt=tsv("a|b|c|1"))
    with pytest.raises(UserError, match="4 tab-separated fields"):
        load(four)


def test_every_table_format_gives_the_same_examples(tmp_path):
    rows = [
        {"premise": 'one "quoted", text', "hypothesis": "two", "label": "b"},
        {"premise": "three", "hypothesis": "four", "label": "a"},
    ]
    folders = {name: write(tmp_path / name) for name in ("csv", "tsv", "jsonl", "parquet", "gz")}
    for split in ("train", "validation"):
        with open(folders["csv"] / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
        (folders["tsv"] / f"{split}.tsv").write_text("\r\n".join(lines) + "\r\n")
        jsonl = "".join(json.dumps(row) + "\n" for row in rows)
        (folders["jsonl"] / f"{split}.jsonl").write_text(jsonl)
        (folders["gz"] / f"{split}.jsonl.gz").write_bytes(gzip.compress(jsonl.encode()))
        pq.write_table(pa.Table.from_pylist(rows), folders["parquet"] / f"{split}.parquet")
    expected = [Example('one "quoted", text', "two", 1.0), Example("three", "four", 0.0)]
    for name, folder in folders.items():
        data, _ = load(folder)
        assert data.splits == {"train": expected, "dev": expected}, name
        assert data.spec.labels == ("a", "b")


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("review,label", {}, "columns review, label none has a usual name.*--text_column"),
        ("text,verdict", {}, "columns text, verdict none is called label.*--label_column"),
        ("sentence,text,label", {}, r"several could be the text \(sentence, text\)"),
        ("text,label,score", {}, r"several could be the label \(label, score\)"),
        ("text,label", {"text_column": "txt"}, "--text_column txt: .* It has: text, label"),
        ("text,label", {"text_pair_column": "b"}, "--text_pair_column b: .* It has: text, label"),
        ("text,label", {"label_column": "y"}, "--label_column y: .* It has: text, label"),
    ],
)
def test_column_mistakes_list_the_columns(tmp_path, header, options, message):
    row = ",".join("x" for _ in header.split(","))
    write(tmp_path, train_csv=f"{header}\n{row}\n", dev_csv=f"{header}\n{row}\n")
    with pytest.raises(UserError, match=message):
        load(tmp_path, **options)


def test_dev_without_the_column_lists_what_it_has(tmp_path):
    write(tmp_path, train_csv="text,label\na,x\nb,y\n", dev_csv="text,gold\na,x\n")
    with pytest.raises(UserError, match=r"dev\.csv: no column 'label'. It has: text, gold"):
        load(tmp_path)


def test_folder_mistakes(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "none")
    write(tmp_path / "a", notes_md="x")
    with pytest.raises(UserError, match=r"It holds: notes\.md"):
        load(tmp_path / "a")
    write(tmp_path / "b", train_csv="text,label\na,1\n", train_txt="a\t1\n")
    with pytest.raises(UserError, match=r"both train\.csv and train\.txt could be the train data"):
        load(tmp_path / "b")
    write(tmp_path / "c", train_csv="text,label\na,1\nb,0\n", eval_txt="a\t1\n")
    with pytest.raises(UserError, match="laid out differently"):
        load(tmp_path / "c")
    write(tmp_path / "d", train_csv="text,label\na,1\nb,0\n")
    with pytest.raises(UserError, match=r"a dev file is missing. It holds: train\.csv"):
        load(tmp_path / "d")
    write(tmp_path / "e", train_tsv="text\tlabel\n", dev_tsv="text\tlabel\na\t1\n")
    with pytest.raises(UserError, match="holds no row"):
        load(tmp_path / "e")
    write(tmp_path / "f", train_tsv=tsv("sentence|label", "a|1"), dev_tsv=tsv("sentence|label"))
    with pytest.raises(UserError, match=r"dev\.tsv: no usable example"):
        load(tmp_path / "f", task_name="SST-2")
    write(tmp_path / "g", train_tsv=tsv("sentence|label", "a|1"), dev_tsv="")
    with pytest.raises(UserError, match=r"train\.tsv:1: the header has 2 .* QQP needs at least 6"):
        load(tmp_path / "g", task_name="QQP")
    with pytest.raises(UserError, match=r"dev\.tsv: empty file"):
        load(tmp_path / "g", "dev", task_name="SST-2")


def test_augmented_train_file(tmp_path):
    rows = tsv("sentence|label", "a|1", "b|0")
    write(tmp_path, train_tsv=rows, dev_tsv=rows)
    with pytest.raises(UserError, match="no train_aug file"):
        load(tmp_path, task_name="SST-2", aug_train=True)
    write(tmp_path, train_aug_tsv=tsv("sentence|label", "a|1", "a2|1", "b|0"))
    augmented, _ = load(tmp_path, task_name="SST-2", aug_train=True)
    plain, _ = load(tmp_path, task_name="SST-2")
    assert [e.text for e in augmented.splits["train"]] == ["a", "a2", "b"]
    assert len(plain.splits["train"]) == 2 and plain.fingerprint != augmented.fingerprint


def test_raw_rows_can_be_written_back(tmp_path):
    content = tsv("Quality|#1 ID|#2 ID|#1 String|#2 String", '1|7|8|He said "no.|Yes', "0|9|10|a|b")
    raw = read_raw_rows(write(tmp_path, train_tsv=content) / "train.tsv", glue_task("MRPC"))
    assert (raw.text_columns, raw.label_column) == ((3, 4), 0)
    rows = list(raw.rows)
    assert "\n".join([raw.header, *("\t".join(row) for _, row in rows)]) + "\n" == content
    assert [line for line, _ in rows] == [2, 3]
    cola = read_raw_rows(write(tmp_path, cola_tsv=tsv("gj04|1||text")) / "cola.tsv", glue_task("CoLA"))
    assert cola.header is None and list(cola.rows) == [(1, ["gj04", "1", "", "text"])]


def test_raw_rows_of_tables_are_one_line_each(tmp_path):
    write(tmp_path, train_csv='label,text\n1,"two\nlines, one\ttab"\n0,b\n', dev_csv="label,text\n1,x\n")
    folder, spec = find_task(TaskOptions(data_dir=str(tmp_path)))
    raw = read_raw_rows(folder / spec.train_file, spec)
    assert raw.header == "label\ttext" and raw.text_columns == (1,)
    assert list(raw.rows) == [(2, ["1", "two lines, one tab"]), (4, ["0", "b"])]
    data, _ = load(tmp_path)
    assert data.splits["train"][0].text == "two\nlines, one\ttab"
