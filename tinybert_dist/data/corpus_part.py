"""One piece of raw text to one folder of token rows: the unit of work, of restarting and of sharing out."""

import dataclasses
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil

from tinybert_dist.config import UserError
from tinybert_dist.data.corpus_pieces import require_unchanged
from tinybert_dist.data.packing import Row, pack_lines, pack_pairs
from tinybert_dist.data.sources import Piece, kind_of, located, read_sentences, read_table
from tinybert_dist.data.text import BadRecords, OnRead, is_compressed
from tinybert_dist.data.token_writer import TokenWriter
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.data.word_pieces import WordPieces
from tinybert_dist.files import fingerprint

RECIPE_VERSION = 1  # raise it when the same text would give other rows
BATCH_SENTENCES = 4096
BATCH_CHARS = 1 << 20
PREGENERATED_COLUMNS = {"tokens", "segment_ids"}
HOST = fingerprint(socket.gethostname())[:8]  # machines may share the folder and a process id


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides the rows, besides text and tokenizer. `mode`: "pairs" or "line"; lengths in tokens."""

    mode: str = "pairs"
    max_seq_length: int = 128
    seed: int = 42
    text_column: str = "text"


def part_name(piece: Piece, content: str, recipe: Recipe, tokenizer_fingerprint: str) -> str:
    """Folder name that stands for content, tokenizer and recipe: the same work has the same name."""
    path = piece.source.path
    # a byte order mark is one at the beginning of a file only
    how = [kind_of(piece.source), is_compressed(path) and Path(path).suffix, piece.start > 0]
    key = [RECIPE_VERSION, dataclasses.asdict(recipe), tokenizer_fingerprint, content, how]
    return f"part-{fingerprint(key)}"


def is_finished(folder: Path, on_bad_record: str) -> bool:
    """Whether `folder` holds a whole part that may be reused: undamaged, no bad record under "error"."""
    try:
        header = TokenDataset.open(folder).header
    except UserError:
        return False
    return on_bad_record == "skip" or header["bad_records"] == 0


def build_part(
    piece: Piece,
    content: str,
    folder: Path,
    pieces: WordPieces,
    recipe: Recipe,
    on_bad_record: str,
    on_read: OnRead | None = None,
) -> None:
    """Writes a piece's rows to `folder`, whole or not at all.

    Raises UserError for bad records, and when the source changed meanwhile.
    """
    temporary = folder.with_name(f".{folder.name}.{HOST}.{os.getpid()}.tmp")
    bad = BadRecords("skip" if on_bad_record == "skip" else "error")
    counts: Counter[str] = Counter(documents=0, sentences=0, text_tokens=0, unknown_tokens=0, cut_tokens=0)
    header: dict[str, Any] = {"source": piece.source.name, "start": piece.start, "end": piece.end}
    try:
        with TokenWriter(temporary, vocab_size=pieces.vocab_size, header=header) as writer:
            for input_ids, segment_b in _rows(piece, content, pieces, recipe, bad, counts, on_read):
                writer.add(input_ids, segment_b)
            require_unchanged(piece)
            header |= {"counts": dict(counts), "bad_records": bad.total}
            header |= {"bad_kinds": dict(bad.counts), "bad_first": bad.first}
        _put(temporary, folder, on_bad_record)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_abandoned(temporary: Path) -> bool:
    """Whether whoever wrote a temporary folder of build_part on this machine is gone; False for others."""
    _, _, host, process_id, _ = temporary.name.split(".")
    return host == HOST and not psutil.pid_exists(int(process_id))


def _put(temporary: Path, folder: Path, on_bad_record: str) -> None:
    try:
        os.rename(temporary, folder)
    except OSError:
        if is_finished(folder, on_bad_record):
            return  # another process had the same content, and was faster
        # what stands there is damaged, or was made under --on_bad_record skip
        shutil.rmtree(folder)
        os.rename(temporary, folder)


def _rows(
    piece: Piece,
    content: str,
    pieces: WordPieces,
    recipe: Recipe,
    bad: BadRecords,
    counts: Counter[str],
    on_read: OnRead | None,
) -> Iterator[Row]:
    if _is_pregenerated(piece):
        return _pregenerated_rows(piece, pieces, recipe, bad, counts, on_read)
    special = {"max_seq_length": recipe.max_seq_length, "cls_id": pieces.cls_id, "sep_id": pieces.sep_id}
    encoded = _encoded(read_sentences(piece, bad, recipe.text_column, on_read), pieces, counts)
    if recipe.mode == "line":
        return pack_lines(_lines(encoded), **special, on_cut=lambda n: counts.update(cut_tokens=n))
    # the draws belong to the content: neither the file's name nor its place among the others changes a row
    seed = f"{recipe.seed}:{content}"
    return pack_pairs(
        _documents(encoded, counts), **special, seed=seed, continuation_ids=pieces.continuation_ids
    )


def _encoded(
    sentences: Iterable[tuple[int, str | None]], pieces: WordPieces, counts: Counter[str]
) -> Iterator[list[int] | None]:
    batch: list[str | None] = []
    num_chars = 0
    for _, sentence in sentences:
        batch.append(sentence)
        num_chars += len(sentence or "")
        if len(batch) >= BATCH_SENTENCES or num_chars >= BATCH_CHARS:
            yield from _encode_batch(batch, pieces, counts)
            batch, num_chars = [], 0
    yield from _encode_batch(batch, pieces, counts)


def _encode_batch(
    batch: list[str | None], pieces: WordPieces, counts: Counter[str]
) -> Iterator[list[int] | None]:
    encoded = pieces.encode([sentence for sentence in batch if sentence is not None])
    counts["sentences"] += len(encoded)
    counts["text_tokens"] += sum(map(len, encoded))
    if pieces.unk_id is not None:
        counts["unknown_tokens"] += sum(ids.count(pieces.unk_id) for ids in encoded)
    following = iter(encoded)
    return (None if sentence is None else next(following) for sentence in batch)


def _documents(encoded: Iterable[list[int] | None], counts: Counter[str]) -> Iterator[Iterator[list[int]]]:
    # lazy inside too: a file without blank lines is one document, however long
    for is_break, sentences in groupby(encoded, key=lambda ids: ids is None):
        if not is_break:
            counts["documents"] += 1
            yield _lines(sentences)


def _lines(encoded: Iterable[list[int] | None]) -> Iterator[list[int]]:
    return (ids for ids in encoded if ids is not None)


def _is_pregenerated(piece: Piece) -> bool:
    if kind_of(piece.source) != "jsonl":
        return False
    first = next(read_table(piece, BadRecords("skip")), None)
    return first is not None and PREGENERATED_COLUMNS <= first[1].keys()


def _pregenerated_rows(
    piece: Piece,
    pieces: WordPieces,
    recipe: Recipe,
    bad: BadRecords,
    counts: Counter[str],
    on_read: OnRead | None,
) -> Iterator[Row]:
    # the reference's epoch_N.json: only tokens and segments matter
    remedy = "Write the file again with the same vocabulary and length, or give the raw text."
    rows: Iterator[tuple[int, dict[str, Any]]] = read_table(piece, bad, on_read)
    for position, row in rows:
        if problem := _problem_of(row, recipe.max_seq_length):
            located(bad, piece).report(piece.source.path, position, problem, remedy)
        elif -1 in (ids := pieces.ids_of(row["tokens"])):
            problem = f"token {row['tokens'][ids.index(-1)]!r} is not in the vocabulary"
            located(bad, piece).report(piece.source.path, position, problem, remedy)
        else:
            counts.update(sentences=1, text_tokens=len(ids), unknown_tokens=ids.count(pieces.unk_id or -1))
            yield ids, row["segment_ids"].count(0)


def _problem_of(row: dict[str, object], max_seq_length: int) -> str:
    tokens, segments = row.get("tokens"), row.get("segment_ids")
    if not isinstance(tokens, list) or not isinstance(segments, list) or len(tokens) != len(segments):
        return "tokens and segment_ids are not two lists of one length"
    num_first = segments.count(0)
    if segments != [0] * num_first + [1] * (len(segments) - num_first):
        return "segment_ids are not zeros followed by ones"
    if not 0 < len(tokens) <= max_seq_length:
        return f"{len(tokens)} tokens, where --max_seq_length is {max_seq_length}"
    return ""
