"""One lane of a stream: an endless sequence of packed rows out of its pieces, from any position on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from tinybert_dist.data.corpus_part import Recipe
from tinybert_dist.data.lanes import first_block_rows, piece_order, row_order
from tinybert_dist.data.packing import Row, pack_lines, pack_pairs
from tinybert_dist.data.sources import Piece, read_sentences
from tinybert_dist.data.text import BadRecords, OnRead, format_suffix
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.data.word_pieces import WordPieces

BATCH_SENTENCES = 512
BATCH_CHARS = 1 << 17


class Position(NamedTuple):
    """Where a lane stands: the block it gives rows of, and how many of them it has given.

    A block begins in `epoch` at the `piece`-th piece of the epoch's order, after `records` records of it;
    `rows` rows of the block are given. records_read, bad_records: of the lane in all, before the block.
    """

    epoch: int = 0
    piece: int = 0
    records: int = 0
    rows: int = 0
    records_read: int = 0
    bad_records: int = 0


class Rows(NamedTuple):
    """Token rows one after the other: input_ids [tokens], lengths [rows], segment_b [rows]."""

    input_ids: np.ndarray
    lengths: np.ndarray
    segment_b: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Row], id_type: type = np.int64) -> "Rows":
        """From lists of ids."""
        lengths = np.array([len(ids) for ids, _ in rows], np.int32)
        ids: np.ndarray = np.fromiter(
            chain.from_iterable(ids for ids, _ in rows), id_type, int(lengths.sum())
        )
        return cls(ids, lengths, np.array([segment_b for _, segment_b in rows], np.int32))

    @classmethod
    def join(cls, parts: "Sequence[Rows]") -> "Rows":
        """One after the other."""
        return cls(*map(np.concatenate, zip(cls.of([], np.uint16), *parts, strict=True)))

    def dataset(self) -> TokenDataset:
        """The same as samples to fetch."""
        ids: list[Any] = np.split(self.input_ids, np.cumsum(self.lengths)[:-1])[: len(self.lengths)]
        return TokenDataset.from_rows(ids, self.segment_b.tolist())

    def take(self, rows: np.ndarray) -> "Rows":
        """The rows asked for, in that order."""
        ends = np.cumsum(self.lengths, dtype=np.int64)[rows]
        lengths = self.lengths[rows]
        ids = [self.input_ids[end - n : end] for end, n in zip(ends, lengths, strict=True)]
        return Rows(np.concatenate([self.input_ids[:0], *ids]), lengths, self.segment_b[rows])


@dataclass(frozen=True)
class Reading:
    """How raw text becomes rows. `seed`: of the run's order; on_read: is told of bytes read."""

    word_pieces: WordPieces
    recipe: Recipe
    seed: int
    on_bad_record: str = "error"
    on_read: OnRead | None = None

    def encode(self, sentences: Sequence[str | None]) -> Iterator[list[int] | None]:
        """Ids of each sentence; None, the end of a document, stays."""
        encoded = iter(self.word_pieces.encode([s for s in sentences if s is not None]))
        return (None if sentence is None else next(encoded) for sentence in sentences)

    def pack(self, encoded: Iterable[list[int] | None], key: str) -> Iterator[Row]:
        """Rows as preparation makes them; `key`: of the draws."""
        pieces, length = self.word_pieces, self.recipe.max_seq_length
        if self.recipe.mode == "line":
            return pack_lines(
                _sentences(encoded), max_seq_length=length, cls_id=pieces.cls_id, sep_id=pieces.sep_id
            )
        by_document = groupby(encoded, key=lambda sentence: sentence is None)
        return pack_pairs(
            (_sentences(sentences) for is_break, sentences in by_document if not is_break),
            max_seq_length=length,
            cls_id=pieces.cls_id,
            sep_id=pieces.sep_id,
            seed=key,
            continuation_ids=pieces.continuation_ids,
        )


def _sentences(encoded: Iterable[list[int] | None]) -> Iterator[list[int]]:
    return (ids for ids in encoded if ids is not None)


class Lane:
    """Gives the rows of its pieces, epoch after epoch.

    They are read, tokenised and packed in blocks of about `block_rows`, which are shuffled. A block is a pure
    function of (seed, lane, where it starts), so going on inside one reads that one again and nothing before.
    Raises UserError for a bad record, unless those are counted and passed over.
    """

    def __init__(
        self,
        number: int,
        pieces: Sequence[Piece],
        reading: Reading,
        block_rows: int,
        position: Position,
    ) -> None:
        self.number, self._pieces, self._reading = number, pieces, reading
        self._block_rows, self._next, self._bad_before = block_rows, position, position.bad_records
        self._start, self._given, self._order = position, 0, np.zeros(0, np.int64)
        self._is_barren = not pieces
        self.bad = BadRecords("skip" if reading.on_bad_record == "skip" else "error")
        self._records: Iterator[tuple[int, list[str | None]]] | None = None
        self._piece_reopens = False

    @property
    def position(self) -> Position:
        """After the last row given."""
        return self._start._replace(rows=self._given) if self._given < len(self._order) else self._next

    @property
    def num_read(self) -> tuple[int, int]:
        """Records read, and bad records passed over, since epoch 0 began."""
        return self._next.records_read, self._next.bad_records

    def take(self, count: int) -> Rows:
        """The next `count` rows; none when the lane's pieces hold no text."""
        parts = []
        while count and (self._given < len(self._order) or self._read_block()):
            chosen = self._order[self._given : self._given + count]
            parts.append(self._block.take(chosen))
            self._given += len(chosen)
            count -= len(chosen)
        return Rows.join(parts)

    @property
    def _id_type(self) -> type:
        return np.uint16 if self._reading.word_pieces.vocab_size <= 1 << 16 else np.uint32

    def _read_block(self) -> bool:
        rows: list[Row] = []
        while not rows and not self._is_barren:
            start, given = self._next._replace(rows=0), self._next.rows
            block = (self.number, start.epoch, start.piece, start.records)
            key = f"{self._reading.seed}:{block}"
            for row in self._reading.pack(self._encoded(rows), key):
                rows.append(row)  # as they come: _encoded looks at them
            is_whole_epoch = start.piece == start.records == 0 and self._next.epoch > start.epoch
            self._is_barren = is_whole_epoch and not rows
        if self._piece_reopens:
            self._records = None  # a read buffer in every lane would be more than all the rows
        if self._is_barren:
            return False
        self._block = Rows.of(rows, self._id_type)
        self._start, self._given = start, given
        self._order = row_order(self._reading.seed, block, len(rows))
        return True

    def _encoded(self, rows: Sequence[Row]) -> Iterator[list[int] | None]:
        epoch, wanted = self._next.epoch, self._block_rows
        if self._next.piece == self._next.records == 0:
            wanted = first_block_rows(self.number, wanted)
        while (not rows or len(rows) < wanted) and self._next.epoch == epoch:
            yield from self._reading.encode(self._read_batch())

    def _read_batch(self) -> list[str | None]:
        """Sentences of whole records of one piece."""
        if self._records is None:
            self._open_piece()
        batch: list[str | None] = []
        num_records = num_chars = 0
        while self._ahead and len(batch) < BATCH_SENTENCES and num_chars < BATCH_CHARS:
            batch += self._ahead[1]
            num_records, num_chars = num_records + 1, num_chars + sum(len(s or "") for s in self._ahead[1])
            self._advance()
        # all before the next record is done with, bad ones too
        at = self._next
        if self._ahead:
            at = at._replace(records=self._ahead[0] - 1)
        else:
            self._records = None
            batch.append(None)  # what follows comes from elsewhere
            is_last = at.piece + 1 == len(self._pieces)
            at = at._replace(epoch=at.epoch + is_last, piece=0 if is_last else at.piece + 1, records=0)
        self._next = at._replace(
            rows=0,
            records_read=at.records_read + num_records,
            bad_records=self._bad_before + self.bad.total,
        )
        return batch

    def _open_piece(self) -> None:
        order = piece_order(self._reading.seed, self._next.epoch, self.number, len(self._pieces))
        reading, piece = self._reading, self._pieces[order[self._next.piece]]
        # a part of a text file is small, and the way back to where a block ended short
        self._piece_reopens = piece.end is not None and format_suffix(piece.source.name) != ".parquet"
        sentences = read_sentences(
            piece, self.bad, reading.recipe.text_column, reading.on_read, self._next.records
        )
        records = groupby(sentences, key=itemgetter(0))
        self._records = ((position, [s for _, s in items]) for position, items in records)
        self._advance()

    def _advance(self) -> None:
        assert self._records is not None
        self._ahead = next(self._records, None)
