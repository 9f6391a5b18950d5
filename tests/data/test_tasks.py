import csv
import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tinybert_dist.config import StageOptions, UserError, parse
from tinybert_dist.data.encoding import Example
from tinybert_dist.data.glue import GLUE, glue_task
from tinybert_dist.data.task_files import read_raw_rows
from tinybert_dist.data.tasks import TaskOptions, find_task, load_task
from tinybert_dist.data.text import BadRecords

REAL_GLUE = {
    "SST-2": (67349, 872),
    "CoLA": (8551, 1043),
    "MRPC": (3668, 408),
    "RTE": (2490, 277),
    "STS-B": (5749, 1500),
    "WNLI": (635, 71),
}


def load(folder, *splits, policy="error", **options):
    bad = BadRecords(policy)
    data = load_task(TaskOptions(data_dir=str(folder), **options), bad, splits or ("train", "dev"))
    return data, bad


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(content, encoding="utf-8")
    return folder


def tsv(*rows: str) -> str:
    return "".join(row.replace("|", "\t") + "\n" for row in rows)


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


def test_fingerprint_follows_the_content(tmp_path):
    first = write(tmp_path / "x", train_txt=tsv("a|1", "b|0"), eval_txt=tsv("c|0"))
    before = load(first, task_name="t")[0].fingerprint
    same = write(tmp_path / "y", train_txt=tsv("a|1", "b|0"), eval_txt=tsv("c|0"))
    assert load(same, task_name="t")[0].fingerprint == before
    assert load(write(first, eval_txt=tsv("d|0")), task_name="t")[0].fingerprint != before


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
