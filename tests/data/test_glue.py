"""The GLUE tasks as their files come: counts, columns, labels, bad rows."""

from pathlib import Path

import pytest
from task_folders import load, tsv, write

from tinybert_dist.config import UserError
from tinybert_dist.data.encoding import Example
from tinybert_dist.data.glue import GLUE, glue_task

REAL_GLUE = {
    "SST-2": (67349, 872),
    "CoLA": (8551, 1043),
    "MRPC": (3668, 408),
    "RTE": (2490, 277),
    "STS-B": (5749, 1500),
    "WNLI": (635, 71),
}


@pytest.mark.parametrize("name", REAL_GLUE)
def test_real_glue_counts_and_labels(shared_data, name):
    data, bad = load(shared_data / "glue" / name, "train", "dev", "test", task_name=name)
    assert (len(data.splits["train"]), len(data.splits["dev"])) == REAL_GLUE[name]
    assert bad.total == 0 and data.spec == GLUE[name]
    for split, origin in data.origins.items():
        raw = origin.file.read_text(encoding="utf-8").split("\n")
        for i in (0, len(data.splits[split]) - 1):
            fields, example = raw[origin.lines[i] - 1].split("\t"), data.splits[split][i]
            assert example.text in fields and (example.text_pair is None or example.text_pair in fields)
            assert (example.label is None) == (split == "test")


def test_real_rte_labels_go_by_name(shared_data):
    data, _ = load(shared_data / "glue", "dev", task_name="rte")
    assert data.splits["dev"][0] == Example(
        "Dana Reeve, the widow of the actor Christopher Reeve, has died of lung cancer at age 44, according "
        "to the Christopher Reeve Foundation.",
        "Christopher Reeve had an accident.",
        1.0,
    )


def test_glue_names_are_found_however_written():
    assert glue_task("sst2") is GLUE["SST-2"] and glue_task("Sts-B") is GLUE["STS-B"]
    with pytest.raises(UserError, match="Did you mean MRPC"):
        glue_task("MRCP")
    with pytest.raises(UserError, match="Did you mean MNLI"):
        load(Path(__file__).parent, task_name="MNIL")


def test_qqp_short_rows_are_bad_and_quotes_are_text(tmp_path):
    header = "id|qid1|qid2|question1|question2|is_duplicate"
    rows = (header, '1|1|2|"What is it?|Is "it"?|1', "2|3|4|only one", "3|5|6|a|b|0")
    dev = tsv(header, "1|1|2|a|b|0")
    write(tmp_path, train_tsv=tsv(*rows), dev_tsv=dev, test_tsv=tsv("id|question1|question2", "0|x|y"))
    with pytest.raises(UserError, match=r"train\.tsv:3: 4 tab-separated columns where 6"):
        load(tmp_path, task_name="QQP")
    data, bad = load(tmp_path, "train", "dev", "test", policy="skip", task_name="qqp")
    assert data.splits["train"] == [Example('"What is it?', 'Is "it"?', 1.0), Example("a", "b", 0.0)]
    assert data.origins["train"].lines.tolist() == [2, 4] and bad.total == 1
    assert data.splits["test"] == [Example("x", "y", None)]


def test_mnli_reads_both_dev_sets_and_the_last_column(tmp_path):
    columns = "|".join(f"c{i}" for i in range(8)) + "|sentence1|sentence2"
    row = "|".join("x" * 8) + "|{}|{}"
    train = tsv(columns + "|label1|gold_label", row.format("p", "h") + "|neutral|entailment")
    dev = tsv(columns + "|l1|l2|gold_label", row.format("m", "n") + "|neutral|neutral|contradiction")
    other = tsv(columns + "|l1|l2|gold_label", row.format("o", "q") + "|entailment|neutral|neutral")
    write(tmp_path, train_tsv=train, dev_matched_tsv=dev, dev_mismatched_tsv=other)
    data, _ = load(tmp_path, task_name="MNLI")
    assert data.dev_splits == ["dev_matched", "dev_mismatched"]
    assert data.spec.labels == ("contradiction", "entailment", "neutral")
    assert data.splits["train"] == [Example("p", "h", 1.0)]
    assert data.splits["dev_matched"] == [Example("m", "n", 0.0)]
    assert data.splits["dev_mismatched"] == [Example("o", "q", 2.0)]
    assert load(tmp_path, "dev_mismatched", task_name="MNLI")[0].dev_splits == ["dev_mismatched"]
    with pytest.raises(
        UserError, match=r"split validation: not one of MNLI\. Known: train, dev, test, dev_matched"
    ):
        load(tmp_path, "validation", task_name="MNLI")


def test_qnli(tmp_path):
    rows = tsv("index|question|sentence|label", "0|q|s|not_entailment", "1|q2|s2|entailment")
    data, _ = load(write(tmp_path / "QNLI", train_tsv=rows, dev_tsv=rows).parent, task_name="qnli")
    assert [e.label for e in data.splits["train"]] == [1.0, 0.0] and data.splits["dev"][0][:2] == ("q", "s")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("no label here", r"1 tab-separated columns where 2"),
        ("a|b|1", r"3 tab-separated columns where 2"),
        ("  |1", r"empty text in column 1"),
        ("good|2", r"label '2' is not one of the labels. Allowed: 0, 1"),
        ("good|", r"label '' is not one of the labels"),
        ("", r"blank line between rows"),
    ],
)
def test_bad_sst2_rows_name_file_and_line(tmp_path, row, message):
    good = tsv("sentence|label", "fine|1", "bad|0")
    write(tmp_path, train_tsv=tsv("sentence|label", "fine|1", row, "bad|0"), dev_tsv=good)
    with pytest.raises(UserError, match=r"train\.tsv:3: " + message):
        load(tmp_path, task_name="SST-2")
    data, bad = load(tmp_path, policy="skip", task_name="SST-2")
    assert data.splits["train"] == [Example("fine", None, 1.0), Example("bad", None, 0.0)] and bad.total == 1


def test_bad_utf8_names_line_and_offset(tmp_path):
    write(tmp_path, dev_tsv=tsv("sentence|label", "x|0"))
    (tmp_path / "train.tsv").write_bytes(b"sentence\tlabel\nok\t1\nb\xff\t0\nok\t0\n")
    with pytest.raises(UserError, match=r"train\.tsv:3: byte 0xff at offset 21"):
        load(tmp_path, task_name="SST-2")
    data, bad = load(tmp_path, policy="skip", task_name="SST-2")
    assert len(data.splits["train"]) == 2 and bad.total == 1
