"""Lines in, plain or compressed, and the account of bad records. Tables: tables.py, corpora: sources.py."""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from tinybert_dist.config import UserError
from tinybert_dist.data.storage import open_stored, shown

COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 23
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

DAMAGE_REMEDY = "Copy or write the file again."

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
            raise UserError(f"{self.place(file, position)}: {problem}. {remedy} {way_on}")
        # one kind of problem has one counter, whatever numbers and values it quotes
        kind = re.sub(r"(?<![-\w])(0x[0-9a-f]+|\d+)", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "...", problem))
        self.counts[kind] += 1
        if kind not in self.first:
            self.first[kind] = self.place(file, position)

    def place(self, file: str | Path, position: str | int) -> str:
        """How a message names a record."""
        return f"{shown(file)}:{position}"

    def add(self, counts: Mapping[str, int], first: Mapping[str, str]) -> None:
        """Adds another account: how many of each kind, and where the first of each was."""
        self.counts.update(counts)
        self.first = {**first, **self.first}

    def summary(self) -> str:
        """One line with counts and the first position of each problem; "" when nothing was passed over."""
        if not self.total:
            return ""
        kinds = "; ".join(f"{n} x {kind} (first {self.first[kind]})" for kind, n in self.counts.most_common())
        return f"{self.total} bad records passed over: {kinds}"


class DamagedFile(UserError):
    """A file whose bytes end early or make no sense from some point on; `problem` says which."""

    def __init__(self, message: str, problem: str = "") -> None:
        super().__init__(message)
        self.problem = problem


def format_suffix(path: str | Path) -> str:
    """The extension that says the format: `a.csv.gz` -> ".csv"; lower case."""
    path = Path(shown(path))
    if path.suffix.lower() in COMPRESSION:
        path = path.with_suffix("")
    return path.suffix.lower()


def is_compressed(path: str | Path) -> bool:
    """Whether the extension says .gz or .zst."""
    return Path(shown(path)).suffix.lower() in COMPRESSION


def open_binary(
    path: str | Path, on_read: OnRead | None = None, start: int = 0, end: int | None = None
) -> BinaryIO:
    """Opens a file or URL for reading bytes, decompressing .gz and .zst; `start` only where it is neither.

    `on_read(n)` is told of every n bytes taken from the disk up to `end`, before decompression. A damaged
    archive raises DamagedFile when the damage is reached, a broken connection ConnectionError.
    """
    block_bytes = BLOCK_BYTES if end is None else max(1, min(BLOCK_BYTES, end - start))
    return io.BufferedReader(_Decompressed(path, on_read, start, end), block_bytes)


def read_lines(
    path: str | Path,
    bad: BadRecords,
    on_read: OnRead | None = None,
    start: int = 0,
    end: int | None = None,
    skip: int = 0,
) -> Iterator[tuple[int, str]]:
    r"""(1-based line number, line without its \n or \r\n) of the lines whose first byte is in [start, end).

    Numbers count from `start`, the first `skip` lines are passed over. No byte order mark. Bad UTF-8, NUL
    bytes and lines longer than 8 MiB (they would have to fit into memory) go to `bad`, and so does a damaged
    archive: what comes before the damage is read.
    """
    number = 0
    with open_binary(path, on_read, max(0, start - 1), end) as file:
        # with the byte before: if that is the end of a line, the next one is ours
        offset = start - 1 + skip_line(file) if start else 0
        try:
            while (end is None or offset < end) and (raw := file.readline(MAX_LINE_BYTES)):
                number += 1
                size = len(raw)
                if size == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                    size += skip_line(file)
                    problem = f"a line of {size} bytes, more than {MAX_LINE_BYTES}"
                    bad.report(path, number, problem, "Break it into lines.")
                elif number > skip and (text := _text_of(raw, path, number, offset, bad)) is not None:
                    yield number, text
                offset += size
        except DamagedFile as error:
            bad.report(path, number + 1, error.problem, DAMAGE_REMEDY)


def skip_line(file: BinaryIO) -> int:
    """Passes over the rest of a line, its newline included, in bounded memory; how many bytes that was."""
    size = 0
    while part := file.readline(BLOCK_BYTES):
        size += len(part)
        if part.endswith(b"\n"):
            break
    return size


def _text_of(raw: bytes, path: str | Path, number: int, offset: int, bad: BadRecords) -> str | None:
    if offset == 0 and raw.startswith(BYTE_ORDER_MARK):
        raw, offset = raw[3:], 3
        if not raw:
            return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start} is not UTF-8"
        bad.report(path, number, problem, "Convert the file: iconv -f ENCODING -t UTF-8.")
        return None
    if "\0" in text:
        problem = f"a NUL byte at offset {offset + raw.index(0)}"
        bad.report(path, number, problem, "Is it text? Convert UTF-16: iconv -f UTF-16 -t UTF-8.")
        return None
    if text.endswith("\n"):
        return text[:-2] if text.endswith("\r\n") else text[:-1]
    return text


class _Decompressed(io.RawIOBase):
    """Bytes of a file after decompression; damage becomes a DamagedFile."""

    def __init__(self, path: str | Path, on_read: OnRead | None, start: int, end: int | None) -> None:
        self._path, self._on_read, self._told, self._end = path, on_read, start, end
        self._file = open_stored(path)
        if start:
            self._file.seek(start)
        kind = COMPRESSION.get(Path(shown(path)).suffix.lower())
        # Arrow's stream reads several members in a row and notices a cut end; zstandard's reader does not
        self._stream: Any = pa.CompressedInputStream(self._file, kind) if kind else self._file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            count = self._stream.readinto(buffer)
        except ConnectionError:
            raise
        except (OSError, pa.ArrowException) as error:
            problem = f"{error}, at compressed byte {self._file.tell()}: damaged or cut short"
            raise DamagedFile(f"{shown(self._path)}: {problem}. {DAMAGE_REMEDY}", problem) from error
        if self._on_read is not None:
            at = self._file.tell() if self._end is None else min(self._file.tell(), self._end)
            if at > self._told:
                self._on_read(at - self._told)
                self._told = at
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
