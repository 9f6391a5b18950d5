"""Token shards: rows of ids in memory-mapped Arrow files, with a manifest that is written last.

A folder holds `tokens-NNNNN.arrow` (one record batch each: lead list<uint8>, rest list<uint8|uint16>, which
are the ids as token_codes.py tells, segment_b int32, where a row has one label float64) and `manifest.json`
with what each shard holds and its sha256. No manifest: no dataset.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinybert_dist.config import UserError
from tinybert_dist.data.token_codes import LEADS, Lists, encode, ids_by_lead
from tinybert_dist.data.token_manifest import REBUILD, read_manifest
from tinybert_dist.data.token_shards import Shard, open_listed
from tinybert_dist.files import fingerprint

Places = list[tuple[Shard, int]]  # shards, and row numbers in them
NO_ROWS = Shard(*encode(Lists(np.zeros(0, np.uint32), np.zeros(1, np.int32)), 1), np.zeros(0, np.int32))


class Sample(NamedTuple):
    """One row. `segment_b` is the index of the first token of segment 1, len(input_ids) if there is none."""

    row: int
    input_ids: np.ndarray
    segment_b: int
    label: float | None


@dataclass(frozen=True, eq=False)
class Samples(Sequence[Sample]):
    """Rows as arrays, their ids one after the other. As a sequence: the same row by row."""

    rows: np.ndarray  # int64 [n]: dataset rows
    ids: np.ndarray  # int64 [tokens of all n]
    lengths: np.ndarray  # int64 [n]
    segment_b: np.ndarray  # int64 [n]
    labels: np.ndarray  # float64 [n], nan where a row has none

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Samples":
        """The arrays of single samples."""
        return cls(
            np.array([s.row for s in samples], np.int64),
            np.concatenate([np.zeros(0, np.int64), *(s.input_ids for s in samples)], dtype=np.int64),
            np.array([len(s.input_ids) for s in samples], np.int64),
            np.array([s.segment_b for s in samples], np.int64),
            np.array([math.nan if s.label is None else s.label for s in samples], np.float64),
        )

    @cached_property
    def starts(self) -> np.ndarray:
        """Where the ids of each row start in `ids`, int64 [n]."""
        return np.cumsum(self.lengths) - self.lengths

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Sample:  # type: ignore[override]
        start, label = self.starts[i], float(self.labels[i])
        ids = self.ids[start : start + self.lengths[i]]
        return Sample(int(self.rows[i]), ids, int(self.segment_b[i]), None if math.isnan(label) else label)


class TokenDataset:
    """Rows of token ids, memory-mapped from a folder (`open`) or held in memory (`from_rows`).

    `.header` what the writer noted; `.fingerprint` depends on the content, not on the path; picklable.
    Nothing is held per row: what is asked about rows is read from the shards.
    """

    def __init__(self, shards: Sequence[Shard], header: dict[str, Any], content_fingerprint: str) -> None:
        self._shards = tuple(shards)
        self.header = header
        self.fingerprint = content_fingerprint
        sizes = np.array([len(shard) for shard in self._shards], np.int64)
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes
        any_shard = next(iter(self._shards), NO_ROWS)  # their vocabulary is one
        self._rest_type, self._num_short = any_shard.rest.values.dtype, len(any_shard.short_ids)
        tables = [ids_by_lead(shard.short_ids, self._rest_type) for shard in self._shards]
        self._ids_by_lead = np.concatenate([np.zeros(0, np.int64), *tables])

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> "TokenDataset":
        """Opens a folder; `verify` also reads every shard and compares its sha256.

        Raises UserError naming the damaged shard when a file, its size or its rows differ from the manifest.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        shards = [open_listed(folder, entry, manifest["vocab_size"], verify) for entry in manifest["shards"]]
        content = [entry["sha256"] for entry in manifest["shards"]]
        return cls(shards, manifest["header"], fingerprint(content))

    @classmethod
    def from_rows(
        cls,
        input_ids: Sequence[Sequence[int]],
        segment_b: Sequence[int],
        labels: Sequence[float | None] | None = None,
    ) -> "TokenDataset":
        """A dataset in memory: per row a sequence of ids, a segment_b, and optionally a label."""
        assert len(input_ids) == len(segment_b) and (labels is None or len(labels) == len(input_ids))
        offsets = np.zeros(len(input_ids) + 1, np.int32)
        np.cumsum([len(ids) for ids in input_ids], out=offsets[1:])
        values = np.concatenate([np.asarray(ids, np.uint32) for ids in input_ids] or [np.zeros(0, np.uint32)])
        starts = np.asarray(segment_b, np.int32)
        values_f64 = None
        if labels is not None:
            values_f64 = np.array([math.nan if label is None else label for label in labels], np.float64)
        digest = hashlib.sha256()
        for array in (offsets, values, starts, values_f64):
            digest.update(b"none" if array is None else array.tobytes())
        coded = encode(Lists(values, offsets), int(values.max(initial=0)) + 1)
        return cls([Shard(*coded, starts, values_f64)], {}, digest.hexdigest()[:16])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, [CLS] and [SEP] included."""
        return sum(len(shard.lead.values) for shard in self._shards)

    @cached_property
    def max_length(self) -> int:
        """Tokens of the longest row, 0 without rows."""
        return max((shard.max_length for shard in self._shards), default=0)

    @cached_property
    def has_labels(self) -> bool:
        """Whether any row has a label."""
        return any(shard.labels is not None for shard in self._shards)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every row, int32[N]: for small datasets, as it reads and holds a number per row."""
        return self.lengths_in([range(len(self))])

    @property
    def labels(self) -> np.ndarray | None:
        """Label of every row, float64[N], or None if no row has one: for small datasets."""
        return self.labels_of(range(len(self))) if self.has_labels else None

    def lengths_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Tokens of the rows asked for, int32[n]. Raises as `fetch` does."""
        places = self._places(rows)
        starts, ends = self._spans(places, [shard.lead_view for shard, _ in places])
        return (ends - starts).astype(np.int32)

    def labels_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Labels of the rows asked for, float64[n], nan where a row has none. Raises as `fetch` does."""
        return np.array([shard.label(i) for shard, i in self._places(rows)], np.float64)

    def fetch(self, rows: Sequence[int] | np.ndarray) -> Samples:
        """Copies of the rows asked for. Raises IndexError outside [0, len), UserError when one is damaged."""
        places = self._places(rows)
        lead, lengths = self._coded(places, [shard.lead_view for shard, _ in places], np.dtype(np.uint8))
        rest, num_long = self._coded(places, [shard.rest_view for shard, _ in places], self._rest_type)
        table = np.searchsorted(self._ends, np.asarray(rows, np.int64), side="right") * LEADS
        ids = self._ids_by_lead.take(np.repeat(table, lengths) + lead)
        long = np.flatnonzero(lead >= self._num_short)
        found = np.bincount(np.repeat(np.arange(len(places)), lengths)[long], minlength=len(places))
        if (found != num_long).any():
            shard, row = places[int(np.argmax(found != num_long))]
            raise UserError(f"{shard.path}: the codes of row {row} do not match: damaged. {REBUILD}")
        ids[long] += rest
        return Samples(
            np.array(rows, np.int64),
            ids,
            lengths,
            np.array([shard.segment_b[i] for shard, i in places], np.int64),
            self.labels_of(rows) if self.has_labels else np.full(len(places), np.nan),
        )

    def lengths_in(self, blocks: Sequence[range]) -> np.ndarray:
        """Tokens of the rows of `blocks`, block after block, int32[n]: faster than `lengths_of` for many."""
        spans = [span for block in blocks for span in self._shards_of(block)]
        lengths = np.concatenate(
            [np.zeros(0, np.int32), *(s.lengths(first, last) for s, first, last in spans)]
        )
        if lengths.size and (lengths.min() < 0 or lengths.max() > self.max_length):
            self.lengths_of(np.concatenate([np.arange(block.start, block.stop) for block in blocks]))
        return lengths

    def read_ahead(self, blocks: Iterable[range]) -> None:
        """Asks the system to read the rows of `blocks` from the disk in the background."""
        for block in blocks:
            for shard, first, last in self._shards_of(block):
                shard.read_ahead(first, last)

    def _shards_of(self, block: range) -> Iterator[tuple[Shard, int, int]]:
        """The shards a range of rows lies in, with first and last + 1 of its rows in each."""
        assert 0 <= block.start <= block.stop <= len(self) and block.step == 1, block
        first = int(np.searchsorted(self._ends, block.start, side="right"))
        last = int(np.searchsorted(self._starts, block.stop, side="left"))
        for shard, start in zip(self._shards[first:last], self._starts[first:last].tolist(), strict=True):
            yield shard, max(block.start - start, 0), min(block.stop - start, len(shard))

    def _places(self, rows: Sequence[int] | np.ndarray) -> Places:
        """Where each row lies: its shard and its number there."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a dataset of {len(self)}")
        numbers = np.searchsorted(self._ends, rows, side="right")
        at = rows - self._starts[numbers]
        return [(self._shards[n], i) for n, i in zip(numbers.tolist(), at.tolist(), strict=True)]

    def _coded(self, places: Places, lists: list[Lists], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """The values of each place's row of its lists, one after the other, and how many each has."""
        starts, ends = self._spans(places, lists)
        spans = zip(lists, starts.tolist(), ends.tolist(), strict=True)
        content = b"".join([values[start:end] for (values, _), start, end in spans])
        return np.frombuffer(content, dtype), ends - starts

    def _spans(self, places: Places, lists: list[Lists]) -> tuple[np.ndarray, np.ndarray]:
        """Where each place's row starts and ends in its lists; a damaged one would give others' tokens."""
        at = [(offsets, row) for (_, offsets), (_, row) in zip(lists, places, strict=True)]
        starts = np.array([offsets[i] for offsets, i in at], np.int64)
        ends = np.array([offsets[i + 1] for offsets, i in at], np.int64)
        sizes = np.array([len(values) for values, _ in lists], np.int64)
        bad = (starts < 0) | (ends < starts) | (ends > sizes) | (ends - starts > self.max_length)
        if bad.any():
            (shard, row), first, last = next(compress(zip(places, starts, ends, strict=True), bad))
            raise UserError(f"{shard.path}: row {row} is tokens {first} to {last}: damaged. {REBUILD}")
        return starts, ends

    def __getstate__(self) -> tuple:
        return self._shards, self.header, self.fingerprint

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)  # type: ignore[misc]
