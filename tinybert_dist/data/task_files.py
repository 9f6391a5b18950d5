"""Task files on disk: GLUE layouts, header-less text files, and tables of one's own; one file or shards."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tinybert_dist.config import UserError
from tinybert_dist.data.glue import WITH_F1, TaskSpec
from tinybert_dist.data.shards import shards_of, split_stem
from tinybert_dist.data.tables import ROW_FORMATS, read_rows
from tinybert_dist.data.task_tables import RawRows, find_texts, listed, raw_table
from tinybert_dist.data.text import BadRecords, OnRead, format_suffix, read_lines

SPLIT_STEMS = {
    "train": ("train",),
    "train_aug": ("train_aug",),
    "dev": ("dev", "eval", "validation", "valid", "val"),
    "test": ("test",),
}
LAYOUT_LINES = 100_000  # of a file without header are looked at to tell its layout
DEFAULT_LABELS = ("label", "labels", "gold_label", "score", "target")


class Record(NamedTuple):
    """One row of a task file, label not yet looked at."""

    file: Path
    line: int
    texts: tuple[str, ...]
    label: str | None


def read_raw_rows(
    file: str | Path,
    spec: TaskSpec,
    bad: BadRecords | None = None,
    split: str = "train",
    one_line: bool = True,
) -> RawRows:
    """Header line, text and label columns, and every well-formed row of `file` as (line number, columns).

    Rows of another width go to `bad` (default: an error at the first). With `one_line` the columns can be
    written as a line of tab-separated fields: in tables (CSV, JSON lines, Parquet) tabs and newlines in a
    field become spaces.
    """
    return _open_rows(file, spec, BadRecords("error") if bad is None else bad, split, one_line)


def _open_rows(
    file: str | Path,
    spec: TaskSpec,
    bad: BadRecords,
    split: str,
    one_line: bool,
    on_read: OnRead | None = None,
) -> RawRows:
    is_test = split.startswith("test")
    # augment also writes Parquet for files whose columns have no names
    if spec.is_table or ROW_FORMATS.get(format_suffix(file), "tsv") != "tsv":
        return raw_table(file, spec, bad, split, one_line, on_read)
    lines = _unblank(file, bad, on_read)
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


def read_records(
    path: str | Path, spec: TaskSpec, bad: BadRecords, split: str, on_read: OnRead | None = None
) -> Iterator[Record]:
    """Rows of a task file or of its shards; those of a wrong width, without text or with bad UTF-8 go to
    `bad`. Split "unlabelled": labels are not looked for. Raises UserError for a shard with other columns.
    """
    first: tuple[Path, str] | None = None
    for file in shards_of(Path(path)):
        raw = _open_rows(file, spec, bad, split, one_line=False, on_read=on_read)
        # in JSON lines any row may leave out what is empty
        if raw.header and ROW_FORMATS.get(format_suffix(file)) != "jsonl":
            first = first or (file, raw.header)
            if raw.header != first[1]:
                here, there = (header.replace("\t", ", ") for header in (raw.header, first[1]))
                raise UserError(f"{file}: its columns are {here}; those of {first[0].name}: {there}.")
        yield from _records(file, raw, bad)


def _records(file: Path, raw: RawRows, bad: BadRecords) -> Iterator[Record]:
    label_column = raw.label_column
    for line, row in raw.rows:
        texts = tuple(row[column] for column in raw.text_columns)
        empty = [column for column, text in zip(raw.text_columns, texts, strict=True) if not text.strip()]
        # a header-less test file has rows of texts only
        label = None if label_column is None or len(row) == len(texts) else row[label_column].strip()
        if empty:
            bad.report(file, line, f"empty text in column {empty[0] + 1}", "Every row needs its text.")
        else:
            yield Record(file, line, texts, label)


def find_splits(folder: str | Path) -> dict[str, Path]:
    """train, train_aug, dev and test data of a folder, as shards_of takes it.

    Raises UserError when a split is there twice.
    """
    found: dict[str, Path] = {}
    stem_to_split = {stem: split for split, stems in SPLIT_STEMS.items() for stem in stems}
    for entry in sorted(Path(folder).iterdir()):
        stem, path = split_stem(entry) or ("", entry)
        split = stem_to_split.get(stem)
        if split is None or found.get(split) == path:
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
    lines = islice(read_lines(file, BadRecords("skip")), LAYOUT_LINES)
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
            raise UserError(f"{option} {value}: {file} has no such column. It has: {listed(columns)}.")
    text_columns = (
        tuple(c for c in (text, pair) if c is not None) if text else find_texts(file, columns, pair, label)
    )
    if label is None:
        labels = [c for c in DEFAULT_LABELS if c in columns and c not in text_columns]
        if len(labels) != 1:
            problem = f"several could be the label ({listed(labels)})" if labels else "none is called label"
            raise UserError(
                f"{file}: of its columns {listed(columns)} {problem}. Name it with --label_column."
            )
        label = labels[0]
    return TaskSpec(
        name, text_columns=text_columns, label_column=label, test_columns=text_columns,
        **_files_and_metrics(files, "train.tsv"),
    )  # fmt: skip


def _files_and_metrics(files: dict[str, Path], train: str) -> dict:
    return {
        "train_file": files["train"].name if "train" in files else train,
        "dev_files": {"dev": files["dev"].name} if "dev" in files else {},
        "test_files": {"test": files["test"].name} if "test" in files else {},
        "metrics": WITH_F1,
    }


def _check_header(file: str | Path, number: int, width: int, spec: TaskSpec, is_test: bool) -> None:
    columns = [int(c) for c in (spec.test_columns if is_test else (*spec.text_columns, spec.label_column))]
    # a label in the last column stands behind the texts
    needed = max(columns) + 1 + (0 if is_test or spec.label_column != -1 else 1)
    if width < needed:
        raise UserError(
            f"{file}:{number}: the header has {width} tab-separated columns, {spec.name} needs at least "
            f"{needed}. Check --task_name, or leave it out for files with columns of your own."
        )


def _unblank(file: str | Path, bad: BadRecords, on_read: OnRead | None = None) -> Iterator[tuple[int, str]]:
    # blank lines at the very end are how many editors close a file; inside they are a lost row
    blank: list[int] = []
    for number, line in read_lines(file, bad, on_read):
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
