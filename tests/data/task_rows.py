"""Training rows of small tasks: their files, their tokens, and reading back what is in them."""

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import BertTokenizerFast

from tinybert_dist.data.task_tokens import prepare_rows
from tinybert_dist.data.tasks import TaskOptions, load_task
from tinybert_dist.data.text import BadRecords

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(20))]


def make_tokenizer(folder, words):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return BertTokenizerFast.from_pretrained(folder)


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
