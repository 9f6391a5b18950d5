"""One shard of token rows as views of a memory-mapped file, of which only the pages asked for are read."""

import ctypes
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tinybert_dist.config import UserError
from tinybert_dist.data.token_codes import Lists, num_short, rest_type
from tinybert_dist.data.token_manifest import MANIFEST, REBUILD
from tinybert_dist.files import sha256_of

COLUMN_TYPES = [
    [pa.list_(pa.uint8()), pa.list_(rest), pa.int32(), pa.float64()] for rest in (pa.uint8(), pa.uint16())
]
SHORT_IDS = b"short_ids"  # key of the file's metadata
UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)


class Shard:
    """Arrays of one shard: lead and rest (lists of rows), short_ids, segment_b [rows], labels [rows] or None.

    What lead, rest and short_ids are, token_codes.py tells. `is_labelled` is a bit for each row, None where
    every row has a label; `path` is None for rows in memory.
    """

    def __init__(
        self,
        lead: Lists,
        rest: Lists,
        short_ids: np.ndarray,
        segment_b: np.ndarray,
        labels: np.ndarray | None = None,
        is_labelled: np.ndarray | None = None,
        max_length: int | None = None,
        path: Path | None = None,
    ) -> None:
        self.lead, self.rest, self.short_ids = lead, rest, short_ids
        # of one number or a short slice a memoryview is twice as fast as an array
        self.lead_view, self.rest_view = (
            Lists(memoryview(values), memoryview(offsets)) for values, offsets in (lead, rest)
        )
        self.segment_b, self.labels = segment_b, labels
        self.is_labelled, self._max_length, self.path = is_labelled, max_length, path

    @classmethod
    def map(cls, path: Path, max_length: int | None = None) -> "Shard":
        """Memory-maps a file. Raises one of UNREADABLE when it is no shard."""
        file = pa.memory_map(str(path), "r")
        first = file.read_buffer(1)  # Arrow has what is asked of a mapped file read from the disk: so not all
        # else the system reads up to megabytes around each row, of which a shuffled order needs a fraction
        _advise(first.address, file.size(), mmap.MADV_RANDOM)
        content = pa.foreign_buffer(first.address, file.size(), base=first)
        reader = pa.ipc.open_file(content)
        if reader.num_record_batches != 1:
            raise ValueError(f"{reader.num_record_batches} record batches, not 1")
        batch = reader.get_batch(0)
        coded, segment_b = [batch.column("lead"), batch.column("rest")], batch.column("segment_b")
        label = batch.column("label") if "label" in batch.schema.names else pa.nulls(0, pa.float64())
        types = [column.type for column in (*coded, segment_b, label)]
        if types not in COLUMN_TYPES or any(lists.null_count for lists in coded):
            raise ValueError(f"columns of {', '.join(map(str, types))}")

        def view(buffer: pa.Buffer, dtype: Any, count: int) -> np.ndarray:
            # an array of Arrow's, kept for this, would take a kilobyte; the address of an empty one is any
            return np.frombuffer(content, dtype, count, (buffer.address - content.address) * (count > 0))

        def view_lists(lists: pa.ListArray) -> Lists:
            values = view(lists.buffers()[3], lists.type.value_type.to_pandas_dtype(), len(lists.values))
            offsets = view(lists.buffers()[1], np.int32, len(lists) + 1)
            if offsets[0] != 0 or offsets[-1] != len(values):
                raise ValueError("row offsets do not span the tokens")
            return Lists(values, offsets)

        lead, rest = map(view_lists, coded)
        short_ids = np.array(batch.schema.metadata[SHORT_IDS].split(), np.int64)
        labels = is_labelled = None
        if label.null_count < len(label):
            bits, values = label.buffers()
            labels = view(values, np.float64, len(label))
            is_labelled = None if bits is None else view(bits, np.uint8, -(-len(label) // 8))
        starts = view(segment_b.buffers()[1], np.int32, len(segment_b))
        return cls(lead, rest, short_ids, starts, labels, is_labelled, max_length, path)

    def __len__(self) -> int:
        return len(self.segment_b)

    def lengths(self, first: int, last: int) -> np.ndarray:
        """Tokens of rows [first, last), int32."""
        return np.diff(self.lead.offsets[first : last + 1]).astype(np.int32)

    @property
    def max_length(self) -> int:
        """Tokens of the longest row, as the manifest says; reads every offset where it does not."""
        if self._max_length is None:
            self._max_length = int(self.lengths(0, len(self)).max(initial=0))
        return self._max_length

    def label(self, row: int) -> float:
        """The label of a row, nan if it has none."""
        if self.labels is None or not (
            self.is_labelled is None or self.is_labelled[row >> 3] >> (row & 7) & 1
        ):
            return math.nan
        return float(self.labels[row])

    def read_ahead(self, first: int, last: int) -> None:
        """Asks the system to read rows [first, last) from the disk, without waiting for it."""
        if self.path is None:
            return
        arrays = [self.segment_b[first:last]]
        if self.labels is not None:
            arrays.append(self.labels[first:last])
        for values, offsets in (self.lead, self.rest):
            arrays += [offsets[first : last + 1], values[offsets[first] : offsets[last]]]
        for array in arrays:
            _advise(array.ctypes.data, array.nbytes, mmap.MADV_WILLNEED)

    def __reduce__(self) -> tuple:
        # a worker process maps the file again instead of receiving its content
        if self.path is not None:
            return Shard.map, (self.path, self._max_length)
        return Shard, (self.lead, self.rest, self.short_ids, self.segment_b, self.labels)


def open_listed(folder: Path, entry: dict[str, Any], vocab_size: int, verify: bool) -> Shard:
    """The shard of a manifest's entry. Raises UserError when it is not there, or not as listed."""
    path = folder / entry["file"]
    if not path.resolve().is_relative_to(folder.resolve()):  # by its name, or by a link
        raise UserError(f"{folder / MANIFEST}: shard {entry['file']!r} lies outside the folder. {REBUILD}")
    if not path.is_file():
        raise UserError(f"{path}: this shard is listed in {MANIFEST} and not there. {REBUILD}")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise UserError(f"{path}: {size} bytes where {MANIFEST} says {entry['bytes']}: damaged. {REBUILD}")
    if verify and sha256_of(path) != entry["sha256"]:
        raise UserError(f"{path}: its sha256 is not the one in {MANIFEST}: damaged. {REBUILD}")
    try:
        shard = Shard.map(path, entry.get("max_length"))
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable shard ({error}). {REBUILD}") from error
    codes = len(shard.short_ids), shard.rest.values.dtype
    if codes != (num_short(vocab_size), rest_type(vocab_size)):
        raise UserError(f"{path}: not coded for the {vocab_size} ids {MANIFEST} tells of. {REBUILD}")
    found, listed = (len(shard), len(shard.lead.values)), (entry["rows"], entry["tokens"])
    if found != listed:
        said = "{} rows, {} tokens, where {} says {} rows, {} tokens".format(*found, MANIFEST, *listed)
        raise UserError(f"{path}: {said}. {REBUILD}")
    return shard


def _advise(address: int, size: int, advice: int) -> None:
    # what comes of it is speed alone: where the system has no ear for it, rows are the same
    start = address - address % mmap.PAGESIZE
    _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(address + size - start), advice)


_LIBC = ctypes.CDLL(None)
