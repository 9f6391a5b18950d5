"""Lines in, plain or compressed, and the account of bad records. Tables: tables.py, corpora: sentences.py."""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa

from tinybert_dist.config import UserError

COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
BLOCK_BYTES = 1 << 20
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

    def summary(self) -> str:
        """One line with counts and the first position of each problem; "" when nothing was passed over."""
        if not self.total:
            return ""
        kinds = "; ".join(f"{n} x {kind} (first {self.first[kind]})" for kind, n in self.counts.most_common())
        return f"{self.total} bad records passed over: {kinds}"


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
