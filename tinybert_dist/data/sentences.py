"""Corpora in: the files a path stands for, and their sentences and documents."""

from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path

from tinybert_dist.config import UserError
from tinybert_dist.data.tables import ROW_FORMATS, read_rows
from tinybert_dist.data.text import BadRecords, OnRead, format_suffix, read_lines

KNOWN_SUFFIXES = {".txt", ".text", *ROW_FORMATS}


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


def read_sentences(
    path: str | Path, bad: BadRecords, text_column: str = "text", on_read: OnRead | None = None
) -> Iterator[tuple[int, str | None]]:
    """(position, sentence) of any of the formats, with None where a document ends.

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
