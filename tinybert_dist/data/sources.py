"""Raw corpora in: the files a path stands for, cut into pieces, and the sentences of a piece."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinybert_dist.data.source_files import HUB, Source, find_sources, version_of
from tinybert_dist.data.storage import is_url, shown
from tinybert_dist.data.tables import ROW_FORMATS, no_column, open_parquet, read_rows, stored_bytes
from tinybert_dist.data.text import (
    BLOCK_BYTES,
    BadRecords,
    DamagedFile,
    OnRead,
    format_suffix,
    is_compressed,
    read_lines,
)

__all__ = [
    "Piece",
    "Source",
    "find_sources",
    "kind_of",
    "located",
    "read_sentences",
    "read_table",
    "split",
    "version_of",
]


class Piece(NamedTuple):
    """What is read in one go: bytes [start, end) of plain text or JSON lines, or row groups of Parquet.

    A line belongs to the piece that holds its first byte. (0, None), everything, of what cannot be entered in
    the middle: .gz, .zst, CSV, TSV, a web server's file, a shard of a hub dataset. `size_bytes`: its share of
    the source, for balancing and progress.
    """

    source: Source
    start: int = 0
    end: int | None = None
    size_bytes: int = 0


def split(source: Source, piece_bytes: int) -> list[Piece]:
    """Pieces of about `piece_bytes`, in order; no content is read, of Parquet the footer.

    The boundaries lie at multiples of `piece_bytes`, so that a file that grows keeps its first pieces.
    """
    assert piece_bytes > 0
    kind = kind_of(source)
    if kind == "parquet":
        return _row_groups(source, piece_bytes)
    if kind not in {"text", "jsonl"} or is_compressed(source.path) or source.path.startswith("http"):
        return [Piece(source, size_bytes=source.size_bytes)]
    ends = [*range(piece_bytes, source.size_bytes, piece_bytes), source.size_bytes]
    return [Piece(source, start, end, end - start) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def read_sentences(
    piece: Piece,
    bad: BadRecords,
    text_column: str = "text",
    on_read: OnRead | None = None,
    skip_records: int = 0,
) -> Iterator[tuple[int, str | None]]:
    """(position, sentence) of any of the formats, with None where a document ends.

    Text: one sentence per line, its first tab field only; a blank line ends the document. Tables: one row is
    one document, its `text_column` split on newlines. Positions count the piece's lines or rows from 1; what
    stands at positions up to `skip_records` is passed over. Messages name the line or row of the whole file.
    """
    source, start, end, _ = piece
    account = located(bad, piece)
    kind = kind_of(source)
    if kind == "text":
        for number, line in read_lines(source.path, account, on_read, start, end, skip_records):
            if not line or line.isspace():
                yield number, None
            elif sentence := line.split("\t", 1)[0].strip():
                yield number, sentence
        return
    for position, row in read_table(piece, bad, on_read, skip_records, [text_column]):
        if text_column in row:
            yield from _sentences_of(row[text_column], position, source.path, account, text_column)
        elif kind != "jsonl":
            raise no_column(_shown(source), text_column, row)
        else:
            problem = f"no key {text_column!r} (keys: {sorted(row)})"
            account.report(source.path, position, problem, "Choose the key with --text_column.")


def read_table(
    piece: Piece,
    bad: BadRecords,
    on_read: OnRead | None = None,
    skip_records: int = 0,
    columns: Sequence[str] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(position, row) of a piece that is no plain text; positions and the rest as in read_sentences."""
    source, start, end, _ = piece
    if kind_of(source) == "hub":
        from tinybert_dist.data.hub import read_shard

        return read_shard(source.path, source.name, skip_records)
    account = located(bad, piece)
    return read_rows(source.path, account, on_read, start, end, skip_records, columns)


def kind_of(source: Source) -> str:
    """ "text", "hub", or which of ROW_FORMATS the rows are in."""
    if source.path.startswith(HUB):
        return "hub"
    return ROW_FORMATS.get(format_suffix(source.path), "text")


def _sentences_of(
    text: object, position: int, path: str, bad: BadRecords, text_column: str
) -> Iterator[tuple[int, str | None]]:
    if not isinstance(text, str):
        problem = f"column {text_column!r} holds {type(text).__name__}, not text"
        bad.report(path, position, problem, "Every row needs a text.")
        return
    for line in text.splitlines():
        if sentence := line.strip():
            yield position, sentence
    yield position, None


def _row_groups(source: Source, piece_bytes: int) -> list[Piece]:
    try:
        file = open_parquet(source.path)
    except DamagedFile:
        return [Piece(source, size_bytes=source.size_bytes)]  # whoever reads it reports it
    with file:
        sizes = [stored_bytes(file.metadata.row_group(i)) for i in range(file.num_row_groups)]
    pieces, start, size = [], 0, 0
    for i, group_bytes in enumerate(sizes, start=1):
        size += group_bytes
        if size >= piece_bytes or i == len(sizes):
            pieces.append(Piece(source, start, i, size))
            start, size = i, 0
    return pieces or [Piece(source, 0, 0)]


def located(bad: BadRecords, piece: Piece) -> BadRecords:
    """The same account, for positions that count from the beginning of the piece."""
    return _PieceRecords(bad, piece)


class _PieceRecords(BadRecords):
    """Names places in the whole file; the lines before the piece are counted only when one is named."""

    def __init__(self, account: BadRecords, piece: Piece) -> None:
        self.policy, self.counts, self.first = account.policy, account.counts, account.first
        self._piece = piece

    def place(self, file: str | Path, position: str | int) -> str:
        source = self._piece.source
        # what is counted is written down: the same words wherever the corpus lies
        return f"{_shown(source) if self.policy == 'error' else source.name}:{self._in_file(position)}"

    def _in_file(self, position: str | int) -> str | int:
        source, start, _, _ = self._piece
        if not start or isinstance(position, str):
            return position
        if kind_of(source) == "parquet":
            with open_parquet(source.path) as table:
                return position + sum(table.metadata.row_group(i).num_rows for i in range(start))
        if is_url(source.path):
            return f"line {position} after byte {start}"
        return position + _lines_before(source.path, start)


def _shown(source: Source) -> str:
    return source.name if source.path.startswith(HUB) else shown(source.path)


def _lines_before(path: str, start: int) -> int:
    # a line that begins before `start` and ends after it is not the piece's either
    count, last = 0, b""
    with open(path, "rb") as file:
        while start > 0 and (block := file.read(min(BLOCK_BYTES, start))):
            count, start, last = count + block.count(b"\n"), start - len(block), block[-1:]
    return count + (last != b"\n")
