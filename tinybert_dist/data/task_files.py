"""Task files on disk: GLUE layouts, header-less text files, and tables of one's own."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from tinybert_dist.config import UserError
from tinybert_dist.data.glue import WITH_F1, TaskSpec
from tinybert_dist.data.tables import ROW_FORMATS, read_rows
from tinybert_dist.data.text import COMPRESSION, BadRecords, format_suffix, read_lines

SPLIT_STEMS = {
    "train": ("train",),
    "train_aug": ("train_aug",),
    "dev": ("dev", "eval", "validation", "valid", "val"),
    "test": ("test",),
}
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
DEFAULT_LABELS = ("label", "labels", "gold_label", "score", "target")


class Record(NamedTuple):
    """One row of a task file, label not yet looked at."""

    line: int
    texts: tuple[str, ...]
    label: str | None


class RawRows(NamedTuple):
    """A task file column by column, so that it can be written back with the same columns."""

    header: str | None
    text_columns: tuple[int, ...]
    label_column: int | None
    rows: Iterator[tuple[int, list[str]]]


def read_raw_rows(
    file: str | Path, spec: TaskSpec, bad: BadRecords | None = None, split: str = "train"
) -> RawRows:
    """Header line, text and label columns, and every well-formed row of `file` as (line number, columns).

    Rows of another width go to `bad` (default: an error at the first). The columns can be written as a line
    of tab-separated fields: in tables (CSV, JSON lines, Parquet) tabs and newlines in a field become spaces.
    """
    return _open_rows(file, spec, BadRecords("error") if bad is None else bad, split, one_line=True)


def _open_rows(file: str | Path, spec: TaskSpec, bad: BadRecords, split: str, one_line: bool) -> RawRows:
    is_test = split.startswith("test")
    if spec.is_table:
        return _raw_table(file, spec, bad, is_test, one_line)
    lines = _unblank(file, bad)
    header, width = None, spec.num_columns
    text_columns = spec.test_columns if is_test else spec.text_columns
    if spec.test_has_header if is_test else spec.has_header:
        number, header = next(lines, (1, None))
        if header is None:
            raise UserError(f"{file}: empty file, a header line was expected. Copy the file again.")
        width = header.count("\t") + 1
        _check_header(file, number, width, spec, is_test)
    columns = tuple(int(column) for column in text_columns)
    # GLUE's test files have no label; a header-less file of one's own may
    label_column = None if is_test and spec.test_has_header else int(spec.label_column)
    widths = {width, len(columns)} if is_test and header is None else {width}
    return RawRows(header, columns, label_column, _of_width(file, lines, widths, bad))


def read_records(file: str | Path, spec: TaskSpec, bad: BadRecords, split: str) -> Iterator[Record]:
    """Rows of a task file; those of a wrong width, without text or with bad UTF-8 go to `bad`."""
    raw = _open_rows(file, spec, bad, split, one_line=False)
    label_column = raw.label_column
    for line, row in raw.rows:
        texts = tuple(row[column] for column in raw.text_columns)
        empty = [column for column, text in zip(raw.text_columns, texts, strict=True) if not text.strip()]
        # a header-less test file has rows of texts only
        label = None if label_column is None or len(row) == len(texts) else row[label_column].strip()
        if empty:
            bad.report(file, line, f"empty text in column {empty[0] + 1}", "Every row needs its text.")
        else:
            yield Record(line, texts, label)


def find_splits(folder: str | Path) -> dict[str, Path]:
    """train, train_aug, dev and test files of a folder, by name. Raises UserError when a split has two."""
    found: dict[str, Path] = {}
    stem_to_split = {stem: split for split, stems in SPLIT_STEMS.items() for stem in stems}
    for path in sorted(Path(folder).iterdir()):
        suffix = format_suffix(path)
        name = path.with_suffix("").name if path.suffix.lower() in COMPRESSION else path.name
        split = stem_to_split.get(name[: len(name) - len(suffix)].lower()) if suffix else None
        if split is None or suffix not in {".txt", *ROW_FORMATS} or not path.is_file():
            continue
        if split in found:
            raise UserError(
                f"{folder}: both {found[split].name} and {path.name} could be the {split} data. "
                "Move the one you do not mean elsewhere."
            )
        found[split] = path
    return found


def text_layout(name: str, files: dict[str, Path], file: Path) -> TaskSpec:
    """Spec of header-less `text[<TAB>text2]<TAB>label` files: the commonest width of `file` decides which."""
    lines = read_lines(file, BadRecords("skip"))
    widths = Counter(line.count("\t") + 1 for _, line in lines if line.strip())
    width = widths.most_common(1)[0][0] if widths else 0
    if width not in {2, 3}:
        raise UserError(
            f"{file}: most lines have {width} tab-separated fields. Expected text<TAB>label or "
            "text<TAB>text2<TAB>label, without header."
        )
    columns = tuple(range(width - 1))
    return TaskSpec(
        name, text_columns=columns, label_column=width - 1, test_columns=columns, has_header=False,
        test_has_header=False, num_columns=width, **_files_and_metrics(files, "train.txt"),
    )  # fmt: skip


def table_layout(
    name: str, files: dict[str, Path], file: Path, text: str | None, pair: str | None, label: str | None
) -> TaskSpec:
    """Spec of CSV, TSV, JSON lines or Parquet files from the columns of `file`.

    Columns not given are looked for under their usual names. Raises UserError that lists the columns.
    """
    columns = list(next(read_rows(file, BadRecords("skip")), (0, {}))[1])
    if not columns:
        raise UserError(f"{file}: holds no row. The first line names the columns, rows follow.")
    for option, value in (("--text_column", text), ("--text_pair_column", pair), ("--label_column", label)):
        if value is not None and value not in columns:
            raise UserError(f"{option} {value}: {file} has no such column. It has: {_listed(columns)}.")
    text_columns = (
        tuple(c for c in (text, pair) if c is not None) if text else _find_texts(file, columns, pair, label)
    )
    if label is None:
        labels = [c for c in DEFAULT_LABELS if c in columns and c not in text_columns]
        if len(labels) != 1:
            problem = f"several could be the label ({_listed(labels)})" if labels else "none is called label"
            raise UserError(
                f"{file}: of its columns {_listed(columns)} {problem}. Name it with --label_column."
            )
        label = labels[0]
    return TaskSpec(
        name, text_columns=text_columns, label_column=label, test_columns=text_columns,
        **_files_and_metrics(files, "train.tsv"),
    )  # fmt: skip


def _find_texts(file: Path, columns: Sequence[str], pair: str | None, label: str | None) -> tuple[str, ...]:
    free = [column for column in columns if column not in {pair, label}]
    pairs = [both for both in DEFAULT_TEXT_PAIRS if set(both) <= set(free) and pair is None]
    paired = set(chain.from_iterable(pairs))
    singles = [(column,) for column in DEFAULT_TEXTS if column in free and column not in paired]
    candidates: list[tuple[str, ...]] = [*pairs, *singles]
    if len(candidates) != 1:
        several = f"several could be the text ({_listed(chain.from_iterable(candidates))})"
        problem = several if candidates else "none has a usual name"
        raise UserError(
            f"{file}: of its columns {_listed(columns)} {problem}. Name the text with --text_column "
            "(and --text_pair_column); the first line must hold the column names."
        )
    return candidates[0] + ((pair,) if pair else ())


def _files_and_metrics(files: dict[str, Path], train: str) -> dict:
    return {
        "train_file": files["train"].name if "train" in files else train,
        "dev_files": {"dev": files["dev"].name} if "dev" in files else {},
        "test_files": {"test": files["test"].name} if "test" in files else {},
        "metrics": WITH_F1,
    }


def _raw_table(file: str | Path, spec: TaskSpec, bad: BadRecords, is_test: bool, one_line: bool) -> RawRows:
    rows = read_rows(file, bad)
    first = next(rows, None)
    if first is None:
        return RawRows("", (0,) * len(spec.text_columns), None, iter(()))
    columns = list(first[1])
    needed = [*spec.text_columns, *([] if is_test else [spec.label_column])]
    for column in needed:
        if column not in columns:
            raise UserError(
                f"{file}: no column {column!r}. It has: {_listed(columns)}. Name columns with "
                "--text_column, --text_pair_column and --label_column."
            )
    label_column = columns.index(str(spec.label_column)) if spec.label_column in columns else None
    as_columns = (
        (line, [_field(row.get(c), one_line) for c in columns]) for line, row in chain([first], rows)
    )
    text_columns = tuple(columns.index(str(c)) for c in spec.text_columns)
    return RawRows("\t".join(map(_field, columns)), text_columns, label_column, as_columns)


def _check_header(file: str | Path, number: int, width: int, spec: TaskSpec, is_test: bool) -> None:
    columns = [int(c) for c in (spec.test_columns if is_test else (*spec.text_columns, spec.label_column))]
    # a label in the last column stands behind the texts
    needed = max(columns) + 1 + (0 if is_test or spec.label_column != -1 else 1)
    if width < needed:
        raise UserError(
            f"{file}:{number}: the header has {width} tab-separated columns, {spec.name} needs at least "
            f"{needed}. Check --task_name, or leave it out for files with columns of your own."
        )


def _unblank(file: str | Path, bad: BadRecords) -> Iterator[tuple[int, str]]:
    # blank lines at the very end are how many editors close a file; inside they are a lost row
    blank: list[int] = []
    for number, line in read_lines(file, bad):
        if not line.strip():
            blank.append(number)
            continue
        for position in blank:
            bad.report(file, position, "blank line between rows", "Remove it or restore the row.")
        blank = []
        yield number, line


def _of_width(
    file: str | Path, lines: Iterator[tuple[int, str]], widths: set[int | None], bad: BadRecords
) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines:
        row = line.split("\t")
        if len(row) in widths:
            yield number, row
        else:
            expected = " or ".join(str(width) for width in sorted(widths, key=str))
            problem = f"{len(row)} tab-separated columns where {expected} are expected"
            bad.report(file, number, problem, "Repair the row.")


def _field(value: object, one_line: bool = True) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).splitlines()).replace("\t", " ") if one_line else str(value)


def _listed(names) -> str:
    return ", ".join(map(str, names))
