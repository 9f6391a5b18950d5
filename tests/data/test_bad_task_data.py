"""Bad task data: every fault in every format, at both doors (what is trained on, what is evaluated on)."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertTokenizerFast

from tinybert_dist.config import UserError
from tinybert_dist.data.task_tokens import prepare_rows
from tinybert_dist.data.tasks import TaskData, TaskOptions, find_task, load_task
from tinybert_dist.data.text import BadRecords

GOOD = [("w1", "a"), ("w2", "b")]
# the second row of three: format -> (what stands there, how the message begins after file and line)
FAULTS = {
    "another width": {
        "glue": (b"w3\t0\tmore", "3 tab-separated columns where 2 are expected"),
        "txt": (b"w3\ta\tmore", "3 tab-separated columns where 2 are expected"),
        "tsv": (b"w3\ta\tmore", "3 fields where the header has 2"),
        "csv": (b"w3,a,more", "3 fields where the header has 2"),
        "jsonl": (b'["w3", "a"]', "holds list, not an object"),
    },
    "no such syntax": {
        "csv": (b'"w3"x,a', "not valid CSV"),
        "jsonl": (b'{"sentence": "w3"', "not valid JSON"),
    },
    "not UTF-8": {
        "glue": (b"w\xff\t0", r"byte 0xff at offset \d+ is not UTF-8"),
        "txt": (b"w\xff\ta", "byte 0xff at offset 6 is not UTF-8"),
        "tsv": (b"w\xff\ta", "byte 0xff at offset 21 is not UTF-8"),
        "csv": (b"w\xff,a", "byte 0xff at offset 21 is not UTF-8"),
        "jsonl": (b'{"sentence": "w\xff", "label": "a"}', r"byte 0xff at offset \d+ is not UTF-8"),
    },
    "blank row": {
        "glue": (b"", "blank line between rows"),
        "txt": (b"  ", "blank line between rows"),
    },
    "empty text": {
        "glue": (b" \t0", "empty text in column 1"),
        "txt": (b"\ta", "empty text in column 1"),
        "tsv": (b"\ta", "empty text in column 1"),
        "csv": (b'" ",a', "empty text in column 1"),
        "jsonl": (b'{"label": "a"}', "empty text in column 1"),
        "parquet": ((None, "a"), "empty text in column 1"),
    },
    "text that is none": {
        "jsonl": (b'{"sentence": ["w3"], "label": "a"}', "list in column 1, not text"),
    },
    "unknown label": {
        "glue": (b"w3\t2", "label '2' is not one of the labels. Allowed: 0, 1"),
        "txt": (b"w3\tzzz", "label 'zzz' is not one of the labels. Allowed: a, b"),
        "tsv": (b"w3\tzzz", "label 'zzz' is not one of the labels. Allowed: a, b"),
        "csv": (b"w3,zzz", "label 'zzz' is not one of the labels. Allowed: a, b"),
        "jsonl": (b'{"sentence": "w3", "label": 7}', "label '7' is not one of the labels. Allowed: a, b"),
        "parquet": (("w3", "zzz"), "label 'zzz' is not one of the labels. Allowed: a, b"),
    },
    "no label": {
        "glue": (b"w3\t", "label '' is not one of the labels"),
        "txt": (b"w3\t", "label '' is not one of the labels"),
        "tsv": (b"w3\t", "label '' is not one of the labels"),
        "csv": (b"w3,", "label '' is not one of the labels"),
        "jsonl": (b'{"sentence": "w3"}', "label '' is not one of the labels"),
        "parquet": (("w3", None), "label '' is not one of the labels"),
    },
}
FORMATS = {"glue": "tsv", "txt": "txt", "tsv": "tsv", "csv": "csv", "jsonl": "jsonl", "gz": "jsonl.gz"}
FORMATS |= {"parquet": "parquet", "shards": "parquet"}
CASES = [
    (fault, kind, *case)
    for fault, cases in FAULTS.items()
    for kind, case in {**cases, "gz": cases.get("jsonl"), "shards": cases.get("parquet")}.items()
    if case
]
HEADERS = {"glue": b"sentence\tlabel", "tsv": b"sentence\tlabel", "csv": b"sentence,label"}
ROWS = {"csv": b"%s,%s", "jsonl": b'{"sentence": "%s", "label": "%s"}'}
REGRESSION_ROWS = ROWS | {"jsonl": b'{"sentence": "%s", "label": %s}'}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(9))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return BertTokenizerFast.from_pretrained(folder)


def write(folder, split, kind, rows, formats=ROWS):
    """Writes a split of (text, label) rows, or raw ones; returns the file and the line of its 2nd row."""
    if kind in {"parquet", "shards"}:
        file = folder / f"{split}.parquet" if kind == "parquet" else folder / split / "part-1.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        label = [row[1] for row in rows]
        pq.write_table(pa.table({"sentence": [row[0] for row in rows], "label": label}), file)
        if kind == "shards":
            first = pa.table({"sentence": ["w4"], "label": label[:1]})
            pq.write_table(first, file.with_name("part-0.parquet"))
        return file, 2
    style = formats.get("jsonl" if kind == "gz" else kind, b"%s\t%s")
    lines = [row if isinstance(row, bytes) else style % tuple(str(x).encode() for x in row) for row in rows]
    lines = [*([HEADERS[kind]] if kind in HEADERS else []), *lines]
    content = b"\n".join(lines) + b"\n"
    file = folder / f"{split}.{FORMATS[kind]}"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(content) if kind == "gz" else content)
    return file, len(lines) - len(rows) + 2


def doors(folder, kind, tokenizer, policy, **changes):
    """(name of a split, function that reads it: number of rows and the account of bad ones)."""
    if kind == "glue":
        changes = {"task_name": "SST-2", **changes}
    elif "task_mode" not in changes:
        changes = {"labels": ["a", "b"], **changes}
    options = TaskOptions(data_dir=str(folder), **changes)

    def dev():
        bad = BadRecords(policy)
        return len(load_task(options, bad, ("dev",)).splits["dev"]), bad

    def train():
        bad = BadRecords(policy)
        task = TaskData(*find_task(options), {}, {}, "")
        return len(prepare_rows(options, task, tokenizer, folder / "tokens", bad).dataset), bad

    return {"train": train, "dev": dev}


@pytest.mark.parametrize(
    ("fault", "kind", "row", "message"), CASES, ids=[f"{fault}-{kind}" for fault, kind, *_ in CASES]
)
@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_bad_row_is_named_or_counted(tmp_path, tokenizer, split, fault, kind, row, message):
    good = [(text, str("ab".index(label))) for text, label in GOOD] if kind == "glue" else GOOD
    for other in ("train", "dev"):
        write(tmp_path, other, kind, good)
    file, line = write(tmp_path, split, kind, [good[0], row, good[1]])
    with pytest.raises(UserError, match=rf"{file.name}:{line}: {message}.*--on_bad_record skip"):
        doors(tmp_path, kind, tokenizer, "error")[split]()
    count, bad = doors(tmp_path, kind, tokenizer, "skip")[split]()
    assert count == (3 if kind == "shards" else 2) and bad.total == 1
    assert f"{file.name}:{line})" in bad.summary()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "high", ""])
@pytest.mark.parametrize("kind", ["txt", "tsv", "csv", "jsonl", "parquet", "shards"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_value_that_is_no_finite_number(tmp_path, tokenizer, split, kind, value):
    numbers = kind in {"parquet", "shards"}
    if numbers and value in {"high", ""}:
        value = "nan"  # how a column of numbers says so

    def rows(*values):
        return [("w1", float(v) if numbers else v) for v in values]

    style = REGRESSION_ROWS if value not in {"high", ""} else ROWS
    values = value.replace("nan", "NaN").replace("inf", "Infinity") if kind == "jsonl" else value
    for other in ("train", "dev"):
        write(tmp_path, other, kind, rows("1.5", "2"), style)
    file, line = write(tmp_path, split, kind, rows("1.5", values, "2"), style)
    with pytest.raises(UserError, match=rf"{file.name}:{line}: label '.*' is not a finite number"):
        doors(tmp_path, kind, tokenizer, "error", task_mode="regression")[split]()
    count, bad = doors(tmp_path, kind, tokenizer, "skip", task_mode="regression")[split]()
    assert count == (3 if kind == "shards" else 2) and bad.total == 1


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("kind", ["glue", "txt", "tsv", "csv", "jsonl", "gz", "parquet", "shards"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_files_without_rows_cut_files_and_missing_columns(tmp_path, tokenizer, split, kind, policy):
    """The file is named, whatever is asked for: only beside whole shards a cut one can be passed over."""
    good = [(text, str("ab".index(label))) for text, label in GOOD] if kind == "glue" else GOOD
    for other in ("train", "dev"):
        write(tmp_path, other, kind, good * 50)
    file, _ = write(tmp_path, split, kind, good * 50)
    whole = file.read_bytes()
    bad_files = {}
    if kind not in {"parquet", "shards"}:
        bad_files["no row"] = b"" if kind != "gz" else gzip.compress(b"")
    if kind in {"gz", "parquet", "shards"}:
        bad_files["cut"] = whole[: len(whole) * 2 // 3]
        bad_files["no byte"] = b""
    if kind in {"tsv", "csv", "jsonl"}:
        bad_files["columns"] = whole.replace(b"label", b"gold")
    for what, content in bad_files.items():
        file.write_bytes(content)
        if (kind, policy) == ("shards", "skip"):
            count, bad = doors(tmp_path, kind, tokenizer, policy)[split]()
            assert count > 0 and bad.total == 1 and file.name in bad.summary(), what
            continue
        with pytest.raises(UserError, match=file.name.replace(".", r"\.")):
            doors(tmp_path, kind, tokenizer, policy)[split]()
        assert not list((tmp_path / "tokens").glob("rows-*")), what
