"""Tables in: rows of CSV, TSV, JSON lines and Parquet files."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tinybert_dist.config import UserError
from tinybert_dist.data.storage import is_url, open_stored, shown
from tinybert_dist.data.text import (
    DAMAGE_REMEDY,
    MAX_LINE_BYTES,
    BadRecords,
    DamagedFile,
    OnRead,
    format_suffix,
    read_lines,
)

ROW_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
PARQUET_BATCH_ROWS = 1024


def read_rows(
    path: str | Path,
    bad: BadRecords,
    on_read: OnRead | None = None,
    start: int = 0,
    end: int | None = None,
    skip: int = 0,
    columns: Sequence[str] | None = None,
) -> Iterator[tuple[int, dict[str, object]]]:
    """(position, row) of CSV or TSV (with a header), JSON lines or Parquet, chosen by the extension.

    The position is the line the row starts on, or the 1-based row of a Parquet file. CSV follows RFC 4180
    quoting, TSV has quoting off. JSON lines are read between the bytes `start` and `end`, Parquet between the
    row groups, with positions counted from there; rows at positions up to `skip` are passed over. `columns`:
    all that Parquet decodes. Raises UserError for an extension that is none of these.
    """
    kind = ROW_FORMATS.get(format_suffix(path))
    if kind == "parquet":
        yield from _read_parquet(path, bad, on_read, start, end, skip, columns)
    elif kind == "jsonl":
        yield from _read_jsonl(path, bad, on_read, start, end, skip)
    elif kind is not None:
        assert not start and end is None, "a table with a header is read from its beginning"
        rows = (_read_csv if kind == "csv" else _read_tsv)(path, bad, on_read)
        yield from ((position, row) for position, row in rows if position > skip)
    else:
        known = " ".join(ROW_FORMATS)
        raise UserError(f"{shown(path)}: not a table. Known: {known} (also .gz, .zst; not for .parquet).")


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """The file with its footer read; close it. Raises DamagedFile when that cannot be done."""
    try:
        return pq.ParquetFile(
            open_stored(path, seekable=True) if is_url(path) else path, memory_map=not is_url(path)
        )
    except ConnectionError:
        raise
    except (pa.ArrowException, OSError) as error:
        problem = f"not a readable Parquet file: {error}"
        raise DamagedFile(f"{shown(path)}: {problem}. {DAMAGE_REMEDY}", problem) from error


def stored_bytes(group: pq.RowGroupMetaData) -> int:
    """Bytes of a row group as they lie in the file."""
    return sum(group.column(i).total_compressed_size for i in range(group.num_columns))


def first_byte(table: pq.ParquetFile, group: int, size_bytes: int) -> int:
    """Where the row groups from `group` on begin, in a file of `size_bytes`."""
    if group >= table.num_row_groups:
        return size_bytes
    info = table.metadata.row_group(group)
    columns = [info.column(i) for i in range(info.num_columns)]
    pages = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    return min(pages, default=size_bytes)


def _read_csv(
    path: str | Path, bad: BadRecords, on_read: OnRead | None
) -> Iterator[tuple[int, dict[str, object]]]:
    csv.field_size_limit(MAX_LINE_BYTES)  # a quote that is never closed would take in the rest
    at = 0

    def lines() -> Iterator[str]:
        nonlocal at
        for number, line in read_lines(path, bad, on_read):
            at = number
            yield line + "\n"

    reader = csv.reader(lines(), strict=True)
    header: list[str] | None = None
    while True:
        before = at
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            bad.report(
                path, before + 1, f"not valid CSV: {error}", "Quote fields and double the quotes inside them."
            )
            continue
        if not fields:
            continue
        if header is None:
            header = _header(path, fields)
        elif len(fields) != len(header):
            _wrong_width(path, before + 1, fields, header, bad)
        else:
            yield before + 1, dict(zip(header, fields, strict=True))


def _read_tsv(
    path: str | Path, bad: BadRecords, on_read: OnRead | None
) -> Iterator[tuple[int, dict[str, object]]]:
    header: list[str] | None = None
    for number, line in read_lines(path, bad, on_read):
        fields = line.split("\t")
        if header is None:
            header = _header(path, fields)
        elif len(fields) != len(header):
            if line:
                _wrong_width(path, number, fields, header, bad)
        elif line or len(header) == 1:
            yield number, dict(zip(header, fields, strict=True))


def _read_jsonl(
    path: str | Path, bad: BadRecords, on_read: OnRead | None, start: int, end: int | None, skip: int
) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in read_lines(path, bad, on_read, start, end, skip):
        if not line or line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad.report(path, number, f"not valid JSON: {error}", "JSON lines hold one object per line.")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            bad.report(
                path, number, f"holds {type(row).__name__}, not an object", "JSON lines: one object per line."
            )


def _read_parquet(
    path: str | Path,
    bad: BadRecords,
    on_read: OnRead | None,
    start: int,
    end: int | None,
    skip: int,
    columns: Sequence[str] | None,
) -> Iterator[tuple[int, dict[str, object]]]:
    position = 0
    try:
        with open_parquet(path) as file:
            names = file.schema_arrow.names
            if absent := [name for name in columns or () if name not in names]:
                raise no_column(path, absent[0], names)
            for group in range(file.num_row_groups)[start:end]:
                info = file.metadata.row_group(group)
                if position + info.num_rows <= skip:
                    position += info.num_rows
                    continue
                for batch in file.iter_batches(PARQUET_BATCH_ROWS, [group], columns):
                    for row in batch.to_pylist():
                        position += 1
                        if position > skip:
                            yield position, row
                if on_read is not None:
                    on_read(stored_bytes(info))
    except ConnectionError:
        raise
    except DamagedFile as error:
        bad.report(path, position + 1, error.problem, DAMAGE_REMEDY)
    except (pa.ArrowException, OSError) as error:
        bad.report(path, position + 1, f"not readable as Parquet: {error}", DAMAGE_REMEDY)


def no_column(path: str | Path, column: str, columns: Iterable[str]) -> UserError:
    """No row will have the column: a wrong option, not a bad record."""
    found = ", ".join(map(str, columns))
    return UserError(f"{shown(path)}: no column {column!r}; it has {found}. Choose one with --text_column.")


def _header(path: str | Path, fields: list[str]) -> list[str]:
    repeated = [name for name, n in Counter(fields).items() if n > 1]
    if repeated:
        raise UserError(
            f"{shown(path)}:1: the header names {', '.join(map(repr, repeated))} twice. "
            "Give every column its name."
        )
    return fields


def _wrong_width(
    path: str | Path, position: int, fields: list[str], header: list[str], bad: BadRecords
) -> None:
    bad.report(path, position, f"{len(fields)} fields where the header has {len(header)}", "Repair the row.")
