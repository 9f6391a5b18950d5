"""A task as its options and data describe it: labels, splits, fingerprint, command line."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from task_folders import load, tsv, write

from tinybert_dist.config import StageOptions, UserError, parse
from tinybert_dist.data.encoding import Example
from tinybert_dist.data.tasks import TaskOptions


@pytest.mark.parametrize("label", ["nan", "inf", "-inf", "good", ""])
def test_bad_regression_labels(tmp_path, label):
    write(tmp_path, train_csv=f"text,score\na,1.5\nb,{label}\n", dev_csv="text,score\na,2\n")
    with pytest.raises(UserError, match=r"train\.csv:3: label '.*' is not a finite number"):
        load(tmp_path, task_mode="regression")
    data, bad = load(tmp_path, policy="skip", task_mode="regression")
    assert data.splits["train"] == [Example("a", None, 1.5)] and bad.total == 1
    assert data.spec.num_labels == 1 and data.spec.selection_metric == "pearson_spearman"


def test_fractional_labels_ask_for_the_mode(tmp_path):
    write(tmp_path, train_csv="text,label\na,1.5\nb,2.0\n", dev_csv="text,label\na,2\n")
    with pytest.raises(UserError, match="--task_mode regression"):
        load(tmp_path)
    data, _ = load(tmp_path, "train", task_mode="classification")
    assert data.spec.labels == ("1.5", "2")


def test_stray_label_names_its_line_and_can_be_declared(tmp_path):
    rows = [f"text {i}|{i % 2}" for i in range(300)]
    rows[123] = "text 123|what is this?"
    write(tmp_path, train_txt=tsv(*rows), eval_txt=tsv("a|1"))
    with pytest.raises(
        UserError, match=r"train\.txt:124: label 'what is this\?' is not one .*Allowed: 0, 1\."
    ):
        load(tmp_path, num_labels=2)
    data, bad = load(tmp_path, policy="skip")
    assert len(data.splits["train"]) == 299 and bad.total == 1
    assert load(tmp_path, num_labels=3)[0].spec.labels == ("0", "1", "what is this?")
    assert load(tmp_path, labels=["1", "what is this?", "0"])[0].splits["train"][123].label == 1.0
    with pytest.raises(UserError, match=r"--num_labels 4, but .* 2 labels: 0 \(150 rows\), 1 \(149 rows\)"):
        load(tmp_path, num_labels=4)


def test_dev_label_unknown_to_train(tmp_path):
    write(tmp_path, train_csv="text,label\na,x\nb,y\n", dev_csv="text,label\na,x\nb,z\n")
    with pytest.raises(UserError, match=r"dev\.csv:3: label 'z' is not one of the labels. Allowed: x, y\."):
        load(tmp_path)
    with pytest.raises(UserError, match=r"dev\.csv:3: label 'z'"):
        load(tmp_path, "dev")
    assert load(tmp_path, "dev", labels=["z", "x"])[0].splits["dev"][1].label == 0.0


def test_labels_of_numbers_are_one_name_in_every_type(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": [2, 10, 1]}), tmp_path / "train.parquet")
    write(tmp_path, dev_jsonl='{"text": "a", "label": 10.0}\n{"text": "b", "label": "1"}\n')
    data, _ = load(tmp_path)
    assert data.spec.labels == ("1", "2", "10")
    assert [e.label for e in data.splits["train"]] == [1.0, 2.0, 0.0]
    assert [e.label for e in data.splits["dev"]] == [2.0, 0.0]


def test_missing_numbers_of_a_parquet_column_are_no_class(tmp_path):
    nan = float("nan")
    for split in ("train", "dev"):
        table = {"text": ["a", "b", "c", "d"], "label": [1.0, 0.0, nan, nan]}
        pq.write_table(pa.table(table), tmp_path / f"{split}.parquet")
    with pytest.raises(UserError, match=r"train\.parquet:3: label 'nan' is not one .* Allowed: 0, 1\."):
        load(tmp_path)
    data, bad = load(tmp_path, policy="skip")
    assert data.spec.labels == ("0", "1") and bad.total == 4


def test_test_split_may_lack_labels(tmp_path):
    table = "text,label\na,x\nb,y\n"
    write(tmp_path, train_csv=table, dev_csv=table, test_csv="text\nq\n")
    assert load(tmp_path, "train", "test")[0].splits["test"] == [Example("q", None, None)]
    write(tmp_path, test_csv="text,label\nq,-1\nr,y\n")
    assert [e.label for e in load(tmp_path, "test")[0].splits["test"]] == [None, 1.0]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("SST-2", {"num_labels": 3}, "--num_labels 3, but SST-2 has 2: 0, 1"),
        ("SST-2", {"task_mode": "regression"}, "SST-2 is a classification task"),
        ("SST-2", {"labels": ["good", "bad"]}, "the labels of SST-2 are 0 1"),
        ("own", {"labels": ["a", "a"]}, "named twice"),
        ("own", {"task_mode": "regression", "num_labels": 2}, "has one output"),
    ],
)
def test_contradicting_options(tmp_path, task, options, message):
    rows = tsv("sentence|label", "a|1", "b|0")
    with pytest.raises(UserError, match=message):
        load(write(tmp_path, train_tsv=rows, dev_tsv=rows), task_name=task, **options)


def test_fingerprint_follows_the_content(tmp_path):
    first = write(tmp_path / "x", train_txt=tsv("a|1", "b|0"), eval_txt=tsv("c|0"))
    before = load(first, task_name="t")[0].fingerprint
    same = write(tmp_path / "y", train_txt=tsv("a|1", "b|0"), eval_txt=tsv("c|0"))
    assert load(same, task_name="t")[0].fingerprint == before
    assert load(write(first, eval_txt=tsv("d|0")), task_name="t")[0].fingerprint != before


@dataclasses.dataclass(kw_only=True)
class Config(TaskOptions, StageOptions):
    pass


def test_options_on_a_command_line():
    line = "--output_dir o --data_dir d --task_name SST-2 --max_seq_len 64 --do_lower_case --aug_train"
    line += " --labels b a"
    config = parse(Config, line.split())
    assert (config.max_seq_length, config.do_lower_case, config.aug_train) == (64, True, True)
    assert config.labels == ["b", "a"] and parse(Config, ["--output_dir=o", "--data_dir=d"]).labels is None
    assert (
        parse(Config, ["--output_dir=o", "--data_dir=d", "--do_lower_case", "false"]).do_lower_case is False
    )


def test_describe_names_files_and_classes(tmp_path):
    write(tmp_path, train_txt=tsv("a|1", "b|0", "c|1"), eval_txt=tsv("c|0"))
    text = load(tmp_path)[0].describe()
    assert "train: 3 examples" in text and "(0 1, 1 2)" in text and "eval.txt" in text
    assert isinstance(load(tmp_path)[0].origins["train"].lines, np.ndarray)
