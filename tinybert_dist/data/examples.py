"""Rows of task files as examples, one by one: labels by name or as numbers, and text without labels."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tinybert_dist.data.encoding import Example
from tinybert_dist.data.glue import TaskSpec
from tinybert_dist.data.labels import canonical_label
from tinybert_dist.data.shards import shards_of
from tinybert_dist.data.tables import ROW_FORMATS
from tinybert_dist.data.task_files import read_records
from tinybert_dist.data.text import BadRecords, OnRead, format_suffix, read_lines


class Place(NamedTuple):
    """Where an example stands: line of a file, or 1-based row of a Parquet file."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def read_examples(
    path: Path, spec: TaskSpec, bad: BadRecords, split: str, on_read: OnRead | None = None
) -> Iterator[tuple[Place, Example]]:
    """Examples of a split's file or shards, read one by one.

    Rows whose label is not one of the spec's, is no finite number, or is missing outside of test go to `bad`.
    """
    may_lack = split.startswith("test")
    index = {label: float(i) for i, label in enumerate(spec.labels)}
    for file, line, texts, text_label in read_records(path, spec, bad, split, on_read):
        label: float | None = None
        # -1 is how test files distributed as tables say that there is none
        if not (may_lack and (not text_label or (text_label == "-1" and "-1" not in index))):
            name = text_label or ""
            label = _value(name) if spec.mode == "regression" else index.get(canonical_label(name))
            if label is None:
                _report_label(file, line, name, spec, bad)
                continue
        yield Place(file, line), Example(texts[0], texts[1] if len(texts) > 1 else None, label)


def read_unlabelled(
    path: Path, spec: TaskSpec, bad: BadRecords, on_read: OnRead | None = None
) -> Iterator[tuple[Place, Example]]:
    """Text without labels, or with labels nobody looks at: tables, or lines `text[<TAB>text2]`; a file or a
    folder of either.
    """
    if ROW_FORMATS.get(format_suffix(shards_of(path)[0]), "tsv") != "tsv":
        for file, line, texts, _ in read_records(path, spec, bad, "unlabelled", on_read):
            yield Place(file, line), Example(texts[0], texts[1] if len(texts) > 1 else None, None)
        return
    num_texts = len(spec.text_columns)
    expected = "one text" if num_texts == 1 else "two texts with a tab between"
    for file in shards_of(path):
        for line, content in read_lines(file, bad, on_read):
            fields = content.split("\t")
            if not content.strip():
                continue
            if len(fields) != num_texts or not all(text.strip() for text in fields):
                remedy = f"{spec.name} takes {expected} per line."
                bad.report(file, line, f"{len(fields)} tab-separated fields", remedy)
                continue
            yield Place(file, line), Example(fields[0], fields[1] if num_texts > 1 else None, None)


def count_labels(path: Path, spec: TaskSpec, max_rows: int | None = None) -> Counter[str]:
    """How often each label occurs in the first `max_rows` rows; malformed ones are left to who reads them."""
    records = islice(read_records(path, spec, BadRecords("skip"), "train"), max_rows)
    counts = Counter(canonical_label(record.label) for record in records if record.label)
    del counts["nan"]  # how a Parquet file of numbers says that there is none
    return counts


def _value(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _report_label(file: Path, line: int, label: str, spec: TaskSpec, bad: BadRecords) -> None:
    shown = label if len(label) <= 40 else label[:37] + "..."
    if spec.mode == "regression":
        bad.report(file, line, f"label '{shown}' is not a finite number", "Correct the row.")
    else:
        allowed = ", ".join(spec.labels[:20]) + (", ..." if len(spec.labels) > 20 else "")
        remedy = f"Allowed: {allowed}. Correct the row, or list all labels with --labels."
        bad.report(file, line, f"label '{shown}' is not one of the labels", remedy)
