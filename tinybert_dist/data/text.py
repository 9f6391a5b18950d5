"""Text in: plain lines, CSV, TSV, JSON lines and Parquet, plain or compressed. No bad record is silent."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tinybert_dist.config import UserError

COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
ROW_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
KNOWN_SUFFIXES = {".txt", ".text", *ROW_FORMATS}
BLOCK_BYTES = 1 << 20
MAX_CSV_FIELD_CHARS = 1 << 30
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

OnRead = Callable[[int], object]


class BadRecords:
    """Malformed input records: stop at the first with its file and line ("error"), or count them ("skip")."""

    def __init__(self, policy: Literal["error", "skip"] = "error") -> None:
        if policy not in {"error", "skip"}:
            raise UserError(f"--on_bad_record {policy}: give error or skip.")
        self.policy = policy
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    @property
    def total(self) -> int:
        """Records passed over so far."""
        return sum(self.counts.values())

    def report(self, file: str | Path, position: str | int, problem: str, remedy: str) -> None:
        """Raises UserError under "error"; counts the record under "skip"."""
        if self.policy == "error":
            way_on = "Or pass --on_bad_record skip to count and pass over such records."
            raise UserError(f"{file}:{position}: {problem}. {remedy} {way_on}")
        # one kind of problem has one counter, whatever numbers and values it quotes
        kind = re.sub(r"(?<![-\w])(0x[0-9a-f]+|\d+)", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "...", problem))
        self.counts[kind] += 1
        self.first.setdefault(kind, f"{file}:{position}")

    def merge(self, other: "BadRecords") -> None:
        """Adds what another reader counted."""
        self.counts.update(other.counts)
        self.first = other.first | self.first

    def summary(self) -> str:
        """One line with counts and the first position of each problem; "" when nothing was passed over."""
        if not self.total:
            return ""
        kinds = "; ".join(f"{n} x {kind} (first {self.first[kind]})" for kind, n in self.counts.most_common())
        return f"{self.total} bad records passed over: {kinds}"


def find_files(path: str | Path, what: str = "input") -> list[Path]:
    """The files that a file, a folder or a glob stands for, sorted.

    A folder is searched recursively for known extensions, hidden names left out. Raises UserError when there
    is none.
    """
    root = Path(path)
    if root.is_file():
        return [root]
    if root.is_dir():
        visible = (
            p for p in root.rglob("*") if not any(part.startswith(".") for part in p.relative_to(root).parts)
        )
        files = sorted(p for p in visible if p.is_file() and format_suffix(p) in KNOWN_SUFFIXES)
        if not files:
            known = " ".join(sorted(KNOWN_SUFFIXES))
            raise UserError(
                f"{what} {path}: the folder holds no file with a known extension ({known}, also .gz .zst)."
            )
        return files
    if has_magic(str(path)):
        files = sorted(p for p in map(Path, glob(str(path), recursive=True)) if p.is_file())
        if files:
            return files
        raise UserError(
            f"{what} {path}: the pattern matches no file. Check it with ls, and quote it in the shell."
        )
    raise UserError(f"{what} {path}: no such file or folder. Give a file, a folder or a quoted glob pattern.")


def format_suffix(path: str | Path) -> str:
    """The extension that says the format: `a.csv.gz` -> ".csv"; lower case."""
    path = Path(path)
    if path.suffix.lower() in COMPRESSION:
        path = path.with_suffix("")
    return path.suffix.lower()


def open_binary(path: str | Path, on_read: OnRead | None = None) -> BinaryIO:
    """Opens a file for reading bytes, decompressing .gz and .zst.

    `on_read(n)` is told of every n bytes taken from the disk, before decompression. A damaged archive raises
    UserError with the file's name when the damage is reached.
    """
    try:
        return io.BufferedReader(_Decompressed(Path(path), on_read), BLOCK_BYTES)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}. Check the path and its permissions.") from error


def read_lines(path: str | Path, bad: BadRecords, on_read: OnRead | None = None) -> Iterator[tuple[int, str]]:
    r"""(1-based line number, line without its \n or \r\n); no byte order mark; bad UTF-8 goes to `bad`."""
    offset = 0
    with open_binary(path, on_read) as file:
        for number, raw in enumerate(file, start=1):
            start = 3 if number == 1 and raw.startswith(BYTE_ORDER_MARK) else 0
            line = raw[start:] if start else raw
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + start + error.start
                problem = f"byte 0x{line[error.start]:02x} at offset {at} is not UTF-8"
                bad.report(path, number, problem, "Convert the file: iconv -f ENCODING -t UTF-8.")
            else:
                if text.endswith("\n"):
                    text = text[:-2] if text.endswith("\r\n") else text[:-1]
                if line:
                    yield number, text
            offset += len(raw)


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


def read_sentences(
    path: str | Path, bad: BadRecords, text_column: str = "text", on_read: OnRead | None = None
) -> Iterator[tuple[int, str | None]]:
    """(position, sentence) of any of the formats, with None where a document ends (SPEC 7).

    Text: one sentence per line, its first tab field only; a blank line ends the document. Tables: one row is
    one document, its `text_column` split on newlines.
    """
    if format_suffix(path) in ROW_FORMATS:
        for position, row in read_rows(path, bad, on_read):
            yield from _sentences_of_row(path, position, row, bad, text_column)
        return
    for number, line in read_lines(path, bad, on_read):
        if not line or line.isspace():
            yield number, None
        elif sentence := line.split("\t", 1)[0].strip():
            yield number, sentence


def _sentences_of_row(
    path: str | Path, position: int, row: dict[str, object], bad: BadRecords, text_column: str
) -> Iterator[tuple[int, str | None]]:
    if text_column not in row:
        # no row will have it: a wrong option, not a bad record
        if format_suffix(path) in {".csv", ".tsv", ".parquet"}:
            columns = ", ".join(map(str, row))
            raise UserError(
                f"{path}: no column {text_column!r}; it has {columns}. Choose one with --text_column."
            )
        bad.report(
            path,
            position,
            f"no key {text_column!r} (keys: {sorted(row)})",
            "Choose the key with --text_column.",
        )
        return
    text = row[text_column]
    if not isinstance(text, str):
        kind = type(text).__name__
        bad.report(
            path, position, f"column {text_column!r} holds {kind}, not text", "Every row needs a text."
        )
        return
    for line in text.splitlines():
        if sentence := line.strip():
            yield position, sentence
    yield position, None


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


class _Decompressed(io.RawIOBase):
    """Bytes of a file after decompression; damage becomes a UserError that names the file."""

    def __init__(self, path: Path, on_read: OnRead | None) -> None:
        self._path, self._on_read, self._told = path, on_read, 0
        self._file = open(path, "rb")
        kind = COMPRESSION.get(path.suffix.lower())
        # Arrow's stream reads several members in a row and notices a cut end; zstandard's reader does not
        self._stream = pa.CompressedInputStream(self._file, kind) if kind else self._file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            count = self._stream.readinto(buffer)
        except (OSError, pa.ArrowException) as error:
            remedy = "The archive is damaged or cut short: copy or write it again."
            raise UserError(
                f"{self._path}: {error}, at compressed byte {self._file.tell()}. {remedy}"
            ) from error
        if self._on_read is not None and (at := self._file.tell()) > self._told:
            self._on_read(at - self._told)
            self._told = at
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
