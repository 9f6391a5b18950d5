"""Tables in: rows of CSV, TSV, JSON lines and Parquet files."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tinybert_dist.config import UserError
from tinybert_dist.data.text import BadRecords, OnRead, format_suffix, read_lines

ROW_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
MAX_CSV_FIELD_CHARS = 1 << 30


def read_rows(
    path: str | Path, bad: BadRecords, on_read: OnRead | None = None
) -> Iterator[tuple[int, dict[str, object]]]:
    """(position, row) of CSV or TSV (with a header), JSON lines or Parquet, chosen by the extension.

    The position is the line the row starts on, or the 1-based row of a Parquet file. CSV follows RFC 4180
    quoting, TSV has quoting off. Raises UserError for an extension that is none of these.
    """
    readers = {"csv": _read_csv, "tsv": _read_tsv, "jsonl": _read_jsonl, "parquet": _read_parquet}
    kind = ROW_FORMATS.get(format_suffix(path))
    if kind is None:
        raise UserError(
            f"{path}: not a table. Known: {' '.join(ROW_FORMATS)} (also .gz, .zst; not for .parquet)."
        )
    return readers[kind](path, bad, on_read)


def _read_csv(
    path: str | Path, bad: BadRecords, on_read: OnRead | None
) -> Iterator[tuple[int, dict[str, object]]]:
    csv.field_size_limit(MAX_CSV_FIELD_CHARS)
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
    path: str | Path, bad: BadRecords, on_read: OnRead | None
) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in read_lines(path, bad, on_read):
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
    path: str | Path, bad: BadRecords, on_read: OnRead | None
) -> Iterator[tuple[int, dict[str, object]]]:
    position, size_bytes = 0, Path(path).stat().st_size
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    position += 1
                    yield position, row
                if on_read is not None:
                    on_read(size_bytes * batch.num_rows // max(1, file.metadata.num_rows))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not a readable Parquet file after row {position}: {error}. Write it again."
        ) from error


def _header(path: str | Path, fields: list[str]) -> list[str]:
    repeated = [name for name, n in Counter(fields).items() if n > 1]
    if repeated:
        raise UserError(
            f"{path}:1: the header names {', '.join(map(repr, repeated))} twice. Give every column its name."
        )
    return fields


def _wrong_width(
    path: str | Path, position: int, fields: list[str], header: list[str], bad: BadRecords
) -> None:
    bad.report(path, position, f"{len(fields)} fields where the header has {len(header)}", "Repair the row.")
