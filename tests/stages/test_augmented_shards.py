"""What augment writes as Parquet shards gives task distillation the rows of what it writes as text."""

import pytest
from tiny_masked_lm import ENGLISH, save_masked_lm

from tinybert_dist.data.task_tokens import prepare_rows
from tinybert_dist.data.tasks import TaskOptions, load_task
from tinybert_dist.data.text import BadRecords
from tinybert_dist.models import load_tokenizer
from tinybert_dist.stages.augment import AugmentConfig, run

WORDS = [word for word in ENGLISH if word.isalpha()]
TEXTS = [" ".join(WORDS[(i * step) % len(WORDS)] for step in (1, 3, 5, 7, 11)) for i in range(12)]
MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
# layout: (train file, header, one row, options of augment, options of the task)
LAYOUTS = {
    "SST-2": ("train.tsv", "sentence\tlabel", "{a}\t{i}", {}, {}),
    "MRPC": ("train.tsv", MRPC, "{i}\t1\t2\t{a}\t{b}", {}, {}),
    "CoLA": ("train.tsv", "", "x\t{i}\t\t{a}", {}, {}),
    "text": ("train.txt", "", "{a}\t{i}", {}, {"labels": ["0", "1"]}),
    "table": (
        "train.csv",
        "body,team",
        "{a},{i}",
        {"text_column": "body", "label_column": "team"},
        {"text_column": "body", "label_column": "team"},
    ),
    "unlabelled": ("train.txt", "", "{a}\t{i}", {}, {"labels": ["0", "1"]}),
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_masked_lm(tmp_path_factory.mktemp("augmented") / "model")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_hold_the_rows_of_the_text(tmp_path, model_dir, layout):
    name, header, row, augment_options, task_options = LAYOUTS[layout]
    rows = [row.format(a=a, b=TEXTS[-i], i=i % 2) for i, a in enumerate(TEXTS)]
    lines = [*([header] if header else []), *rows]
    is_glue = layout in {"SST-2", "MRPC", "CoLA"}
    fingerprints = set()
    for output_format in ("tsv", "parquet"):
        folder = tmp_path / output_format / "task"
        folder.mkdir(parents=True)
        for file in (name, name.replace("train", "dev")):
            (folder / file).write_text("\n".join(lines) + "\n")
        (folder / "more.txt").write_text("\n".join(TEXTS) + "\n")
        source = "more.txt" if layout == "unlabelled" else name
        where = (
            {"glue_dir": folder, "task_name": layout, "output_dir": folder}
            if is_glue
            else {"data_path": folder / source}
        )
        options = {"pretrained_bert_model": model_dir, **where, **augment_options}
        run(AugmentConfig(output_format=output_format, **{k: str(v) for k, v in options.items()}))
        used = {"aug_train": True}
        if layout == "unlabelled":
            used = {"unlabelled_file_path": str(next(folder.glob("more_aug*")))}
        if is_glue:
            used["task_name"] = layout
        parsed = TaskOptions(data_dir=str(folder), max_seq_length=32, **used, **task_options)
        task = load_task(parsed, BadRecords(), ("dev",))
        prepared = prepare_rows(parsed, task, load_tokenizer(model_dir), folder / "tokens", BadRecords())
        assert len(prepared.dataset) > 2 * len(TEXTS)
        fingerprints.add(prepared.dataset.fingerprint)
    assert len(fingerprints) == 1
