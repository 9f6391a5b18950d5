"""Raw text to train on as it lies there: what is streamed, dealt to lanes, and how much it about is."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from tinybert_dist.config import UserError
from tinybert_dist.data.corpus_part import RECIPE_VERSION, Recipe
from tinybert_dist.data.corpus_pieces import assign
from tinybert_dist.data.lanes import LANES
from tinybert_dist.data.packing import Row
from tinybert_dist.data.sources import Piece, Source, find_sources, read_sentences, split
from tinybert_dist.data.storage import is_url
from tinybert_dist.data.stream_lane import Reading
from tinybert_dist.data.tables import open_parquet
from tinybert_dist.data.text import BadRecords, format_suffix, is_compressed
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.data.word_pieces import WordPieces
from tinybert_dist.files import fingerprint

LAW_VERSION = 1  # raise it when the same text would give another order
MIN_PIECE_BYTES, MAX_PIECE_BYTES = 1 << 14, 1 << 18
MAX_REMOTE_PIECE_BYTES = 1 << 23  # backends read megabytes ahead, which the next piece has no use for
MAX_PIECES = 1 << 19
PIECES_PER_LANE = 16
SAMPLED_PIECES, SAMPLE_BYTES, SAMPLE_SENTENCES = 3, 1 << 17, 10_000


@dataclass(frozen=True)
class Stream:
    """Raw text in pieces that are read, tokenised and packed while training runs.

    fingerprint: of files, tokenizer and everything else that decides the rows. sample: some of its rows.
    rows_per_byte: estimated from the sample, by the kind of file; empty where sizes are unknown.
    """

    pieces: Sequence[Piece]
    reading: Reading
    fingerprint: str
    sample: TokenDataset
    rows_per_byte: dict[str, float]

    def weights(self, rows_per_byte: dict[str, float]) -> list[float]:
        """About how many rows each piece has; where nobody knows, all have as many."""
        if not rows_per_byte:
            return [1.0] * len(self.pieces)
        known = [piece.size_bytes * rows_per_byte[_kind(piece)] for piece in self.pieces]
        mean = sum(known) / max(1, sum(n > 0 for n in known))
        return [n or mean for n in known]

    def deal(self, num_lanes: int, rows_per_byte: dict[str, float]) -> tuple[list[list[Piece]], list[float]]:
        """The pieces of each lane, and the lane's weight."""
        weights = self.weights(rows_per_byte)
        scale = 1e9 / sum(weights)
        lanes = assign([math.ceil(weight * scale) for weight in weights], num_lanes)
        return (
            [[self.pieces[i] for i in sorted(lane)] for lane in lanes],
            [sum(weights[i] for i in lane) for lane in lanes],
        )


def open_stream(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    *,
    on_bad_record: str = "error",
) -> Stream:
    """Finds the files of `path` and reads a little of them. Raises UserError when there is no text."""
    sources = find_sources(path, "--train_file_path")
    total_bytes = sum(source.size_bytes for source in sources)
    piece_bytes = min(MAX_PIECE_BYTES, max(MIN_PIECE_BYTES, total_bytes // (LANES * PIECES_PER_LANE)))
    piece_bytes = max(piece_bytes, total_bytes // MAX_PIECES)
    remote_bytes = max(piece_bytes, min(MAX_REMOTE_PIECE_BYTES, total_bytes // LANES))
    pieces = [
        piece
        for source in sources
        for piece in _split(source, remote_bytes if is_url(source.path) else piece_bytes)
    ]
    reading = Reading(WordPieces.of(tokenizer), recipe, recipe.seed, on_bad_record)
    rows, rows_per_byte = _sample(pieces, reading)
    if not rows:
        raise UserError(f"{path}: no text in {len(sources)} files. Give files with one sentence per line.")
    content = [(s.name, s.size_bytes, s.copied_version or s.version) for s in sources]
    versions = [LAW_VERSION, RECIPE_VERSION, reading.word_pieces.fingerprint]
    sample = TokenDataset.from_rows([ids for ids, _ in rows], [segment_b for _, segment_b in rows])
    return Stream(pieces, reading, fingerprint([*versions, content]), sample, rows_per_byte)


def _split(source: Source, piece_bytes: int) -> list[Piece]:
    pieces = [piece for piece in split(source, piece_bytes) if piece.start != piece.end]
    if len(pieces) > 1 and pieces[-1].size_bytes < piece_bytes / 2:
        # the tail of a line may be all that a small one holds
        tail = pieces.pop()
        size_bytes = pieces[-1].size_bytes + tail.size_bytes
        pieces[-1] = pieces[-1]._replace(end=tail.end, size_bytes=size_bytes)
    return pieces


def _kind(piece: Piece) -> str:
    name = piece.source.name
    return format_suffix(name) + (Path(name).suffix if is_compressed(name) else "")


def _sample(pieces: Sequence[Piece], reading: Reading) -> tuple[list[Row], dict[str, float]]:
    by_kind: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        by_kind[_kind(piece)].append(piece)
    some_rows: list[Row] = []
    rows_per_byte: dict[str, float] = {}
    for kind, same in by_kind.items():
        num_rows = num_bytes = 0
        spread = np.unique(np.linspace(0, len(same) - 1, SAMPLED_PIECES).astype(int))
        others = (piece for i, piece in enumerate(same) if i not in spread)
        for i, piece in enumerate([*(same[i] for i in spread), *others]):
            if i >= len(spread) and num_rows:
                break
            rows, read_bytes = _sample_piece(piece, reading)
            num_rows, num_bytes = num_rows + len(rows), num_bytes + read_bytes
            some_rows += rows[: 1000 - len(some_rows)]
        if num_bytes:
            rows_per_byte[kind] = max(1, num_rows) / num_bytes
    # of files without a size nothing can be told, and together with them of the others neither
    return some_rows, rows_per_byte if len(rows_per_byte) == len(by_kind) else {}


def _sample_piece(piece: Piece, reading: Reading) -> tuple[list[Row], int]:
    """Rows of its beginning, and the bytes they were read from."""
    told: list[int] = []
    sentences: list[str | None] = []
    last = 0
    text_column = reading.recipe.text_column
    for position, sentence in read_sentences(piece, BadRecords("skip"), text_column, told.append):
        # bytes are told when they are taken: what came before the last ones has been read to its end
        if sum(told[:-1]) >= SAMPLE_BYTES or (not told and len(sentences) >= SAMPLE_SENTENCES):
            told = told[:-1]
            break
        sentences.append(sentence)
        last = position
    if format_suffix(piece.source.name) == ".parquet":
        with open_parquet(piece.source.path) as file:
            groups = range(file.num_row_groups)[piece.start : piece.end]
            num_rows = sum(file.metadata.row_group(group).num_rows for group in groups)
        told = [piece.size_bytes * last // max(1, num_rows)]
    return list(reading.pack(reading.encode(sentences), "sample")), min(sum(told), piece.size_bytes)
