"""Seeded mistakes in corpora, task data and word vectors."""

import json
import shutil
import sys

import pytest

from tinybert_dist.stages import prepare_corpus

CHINESE = "\u8fd9\u90e8\u7535\u5f71\u5f88\u597d\u770b\uff0c\u6f14\u5458\u4e5f\u5f88\u51fa\u8272\u3002"


def append(file, line):
    with open(file, "ab") as stream:
        stream.write(line if isinstance(line, bytes) else line.encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"--train_file_path .*no such file or folder.*Give a file"),
        (b"", r"no text in 1 files.*one sentence per line"),
        (b"a line\ncaf\xe9\n", r"text\.txt:2: byte 0xe9 .*not UTF-8.*iconv"),
        ("utf-16".encode("utf-16"), r"text\.txt:1: .*iconv"),
    ],
    ids=["missing", "empty", "latin-1", "utf-16"],
)
def test_corpus(good, catches, tmp_path, content, message):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    options = good("general_distill") | {"train_file_path": tmp_path / "text.txt"}
    catches("general_distill", options, message)


def test_corpus_column(good, catches, tmp_path):
    (tmp_path / "text.jsonl").write_text(json.dumps({"content": "some words"}) + "\n")
    options = good("general_distill") | {"train_file_path": tmp_path / "text.jsonl"}
    catches("general_distill", options, r"no key 'text'.*content.*--text_column")


def test_corpus_of_another_tokenizer(good, catches, masked_lm, tmp_path):
    options = good("prepare_corpus") | {"teacher_model": masked_lm, "output_dir": tmp_path / "tokens"}
    prepare_corpus.main([str(x) for name, value in options.items() for x in (f"--{name}", value)])
    options = good("general_distill") | {"train_file_path": tmp_path / "tokens"}
    catches("general_distill", options, r"prepared with another tokenizer.*run prepare_corpus")


def test_chinese_corpus_english_vocabulary(good, catches, tmp_path):
    (tmp_path / "zh.txt").write_text(f"{CHINESE}\n" * 50)
    options = good("general_distill") | {"train_file_path": tmp_path / "zh.txt"}
    catches("general_distill", options, r"% of the pieces .*\[UNK\].*another language.*Give a model of")


def test_chinese_task_real_english_vocabulary(good, catches, shared_data, workspace, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(workspace / "teacher", teacher, ignore=shutil.ignore_patterns("token*", "*.safetensors"))
    shutil.copy(shared_data / "vocab" / "bert-base-uncased" / "vocab.txt", teacher)
    options = good("finetune_teacher") | {
        "teacher_model": teacher,
        "data_dir": shared_data / "zh" / "dialogue",
        "on_bad_record": "skip",
    }
    catches("finetune_teacher", options, r"% of the pieces .*\[UNK\].*another language")


def test_texts_longer_than_the_limit(good, catches):
    options = good("task_distill") | {"max_seq_length": 16}
    catches("task_distill", options, r"longer than --max_seq_length 16.*With \d+ it is 5 %", "warning")


def test_no_data_folder(good, catches, tmp_path):
    options = good("task_distill") | {"data_dir": tmp_path / "none"}
    catches("task_distill", options, r"--data_dir .*no such folder.*Give the folder")


@pytest.mark.parametrize("split", ["train", "dev"])
def test_missing_split(good, catches, split):
    options = good("task_distill")
    (options["data_dir"] / f"{split}.tsv").unlink()
    catches("task_distill", options, rf"{split}.* is missing")


def test_missing_augmented_data(good, catches):
    options = good("task_distill") | {"aug_train": True}
    catches("task_distill", options, r"--aug_train: .*no train_aug file.*Run the augment stage")


def test_missing_unlabelled_data(good, catches, tmp_path):
    options = good("task_distill") | {"unlabelled_file_path": tmp_path / "more.txt"}
    catches("task_distill", options, r"--unlabelled_file_path .*no such file")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("body\tlabel", r"columns body, label none has a usual name.*--text_column"),
        ("sentence\tteam", r"none is called label.*--label_column"),
        ("label\tlabel", r"the header names 'label' twice"),
    ],
    ids=["text", "label", "twice"],
)
def test_columns(good, catches, header, message):
    options = good("task_distill")
    for name in ("train", "dev"):
        file = options["data_dir"] / f"{name}.tsv"
        file.write_text("\n".join([header, *file.read_text().splitlines()[1:]]) + "\n")
    catches("task_distill", options, message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a text\tperhaps\n", r"dev\.tsv:62: label 'perhaps' .*Allowed: no, yes"),
        ("a text\tyes\ttoo much\n", r"dev\.tsv:62: 3 fields .*Repair the row"),
        (b"caf\xe9\tyes\n", r"dev\.tsv:62: byte 0xe9 .*not UTF-8.*iconv"),
    ],
    ids=["label", "width", "latin-1"],
)
def test_row(good, catches, line, message):
    options = good("task_distill")
    append(options["data_dir"] / "dev.tsv", line)
    catches("task_distill", options, message)


def test_most_rows_skipped(good, catches):
    options = good("task_distill") | {"on_bad_record": "skip", "labels": ["no", "yes"]}
    append(options["data_dir"] / "dev.tsv", "a text\tmaybe\n" * 60)
    catches("task_distill", options, r"60 of the first 120 rows are passed over.*--labels", "warning")


def test_one_class(good, catches):
    options = good("finetune_teacher")
    (options["data_dir"] / "train.tsv").write_text("sentence\tlabel\n" + "some text\tyes\n" * 9)
    catches("finetune_teacher", options, r"1 label\(s\).*check --label_column")


def test_classes_as_numbers(good, catches):
    options = good("finetune_teacher") | {"task_mode": "regression", "replace_head": True}
    for name in ("train", "dev"):
        rows = [f"some text number {i}\t{i % 2}" for i in range(30)]
        (options["data_dir"] / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    catches("finetune_teacher", options, r"values 0, 1 only.*leave --task_mode out", "warning")


def test_mistyped_glue_task(good, catches, tmp_path):
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue" / "notes.md").write_text("nothing here")
    options = good("task_distill") | {"data_dir": tmp_path / "glue", "task_name": "SST2x"}
    catches("task_distill", options, r"--task_name SST2x: not a GLUE task.*Did you mean SST-2")


def test_folder_of_another_glue_task(good, catches):
    options = good("task_distill") | {"task_name": "MRPC"}
    catches("task_distill", options, r"the header has 2 .*columns, MRPC needs.*Check --task_name")


@pytest.mark.parametrize(
    ("content", "message", "severity"),
    [
        (None, r"--glove_embs .*no such file.*GloVe", "error"),
        (b"the 0.1 0.2\nof 0.1\n", r"vectors\.txt:2: not a word followed by 2 numbers", "error"),
        (b"3 2\n\x00\x01\x80\x3f\xff\n", r"vectors\.txt.*GloVe text file", "error"),
        (b"der 0.1 0.2\ndie 0.1 0.2\n", r"has 0 % of the words.*another language", "warning"),
    ],
    ids=["missing", "two widths", "binary", "another language"],
)
def test_word_vectors(good, catches, tmp_path, content, message, severity):
    if content is not None:
        (tmp_path / "vectors.txt").write_bytes(content)
    options = good("augment") | {"glove_embs": tmp_path / "vectors.txt"}
    catches("augment", options, message, severity)


def test_chinese_without_its_segmenter(good, catches, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    (tmp_path / "review.txt").write_text(f"{CHINESE}\tyes\n" * 20)
    catches("augment", good("augment"), r"jieba, which is not installed.*pip install jieba")
