"""Rows of CSV, TSV, JSON lines and Parquet as those of a task: which columns are its texts and its label."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from tinybert_dist.config import UserError
from tinybert_dist.data.glue import TaskSpec
from tinybert_dist.data.tables import read_rows
from tinybert_dist.data.text import BadRecords, OnRead

DEFAULT_TEXT_PAIRS = (
    ("text", "text_pair"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
)
DEFAULT_TEXTS = ("sentence", "text", "text_a", "text1", "sentence1")


class RawRows(NamedTuple):
    """A task file column by column, so that it can be written back with the same columns."""

    header: str | None
    text_columns: tuple[int, ...]
    label_column: int | None
    rows: Iterator[tuple[int, list[str]]]


def raw_table(
    file: str | Path, spec: TaskSpec, bad: BadRecords, split: str, one_line: bool, on_read: OnRead | None
) -> RawRows:
    """Header, columns and rows of CSV, TSV, JSON lines or Parquet; UserError when a column is missing."""
    rows = read_rows(file, bad, on_read)
    first = next(rows, None)
    if first is None:
        return RawRows("", (0,) * len(spec.text_columns), None, iter(()))
    columns = list(first[1])
    texts, label = _column_names(Path(file), spec, columns, split)
    for column in [*texts, *([label] if split.startswith(("train", "dev")) else [])]:
        if column not in columns:
            raise UserError(
                f"{file}: no column {column!r}. It has: {listed(columns)}. Name columns with "
                "--text_column, --text_pair_column and --label_column."
            )
    label_column = columns.index(label) if label in columns else None
    text_columns = tuple(map(columns.index, texts))
    as_columns = _as_columns(file, chain([first], rows), columns, text_columns, bad, one_line)
    return RawRows("\t".join(map(_field, columns)), text_columns, label_column, as_columns)


def _column_names(
    file: Path, spec: TaskSpec, columns: Sequence[str], split: str
) -> tuple[tuple[str, ...], str]:
    """Text columns and label column, also of a table that augment made of a file without column names."""
    if spec.is_table and (split != "unlabelled" or set(spec.text_columns) <= set(columns)):
        return tuple(map(str, spec.text_columns)), str(spec.label_column)
    if split == "unlabelled":
        found = find_texts(file, columns, None, None)
        if len(found) != len(spec.text_columns):
            raise UserError(
                f"{file}: texts in its columns {listed(found)}, where {spec.name} takes "
                f"{len(spec.text_columns)}. Name them as in the training data."
            )
        return found, ""
    numbers = [int(column) for column in (*spec.text_columns, spec.label_column)]
    if spec.has_header and max(numbers) < len(columns):
        *texts, label = (columns[number] for number in numbers)
        return tuple(texts), label
    return ("text", "text_pair")[: len(spec.text_columns)], "label"


def _as_columns(
    file: str | Path,
    rows: Iterator[tuple[int, dict[str, object]]],
    columns: Sequence[str],
    text_columns: Sequence[int],
    bad: BadRecords,
    one_line: bool,
) -> Iterator[tuple[int, list[str]]]:
    for line, row in rows:
        values = [row.get(column) for column in columns]
        nested = [i for i in text_columns if isinstance(values[i], (list, dict, bytes))]
        if nested:
            kind = type(values[nested[0]]).__name__
            bad.report(file, line, f"{kind} in column {nested[0] + 1}, not text", "Every row needs its text.")
        else:
            yield line, [_field(value, one_line) for value in values]


def find_texts(file: Path, columns: Sequence[str], pair: str | None, label: str | None) -> tuple[str, ...]:
    """Columns of one or two texts, by their usual names. Raises UserError that lists the columns."""
    free = [column for column in columns if column not in {pair, label}]
    pairs = [both for both in DEFAULT_TEXT_PAIRS if set(both) <= set(free) and pair is None]
    paired = set(chain.from_iterable(pairs))
    singles = [(column,) for column in DEFAULT_TEXTS if column in free and column not in paired]
    candidates: list[tuple[str, ...]] = [*pairs, *singles]
    if len(candidates) != 1:
        several = f"several could be the text ({listed(chain.from_iterable(candidates))})"
        problem = several if candidates else "none has a usual name"
        raise UserError(
            f"{file}: of its columns {listed(columns)} {problem}. Name the text with --text_column "
            "(and --text_pair_column); the first line must hold the column names."
        )
    return candidates[0] + ((pair,) if pair else ())


def _field(value: object, one_line: bool = True) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).splitlines()).replace("\t", " ") if one_line else str(value)


def listed(names: Iterable[object]) -> str:
    """Names with commas between."""
    return ", ".join(map(str, names))
