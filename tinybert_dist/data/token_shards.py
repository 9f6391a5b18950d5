"""One shard of token rows as views of a memory-mapped file, of which only the pages asked for are read."""

import ctypes
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tinybert_dist.config import UserError
from tinybert_dist.data.token_manifest import MANIFEST, REBUILD
from tinybert_dist.files import sha256_of

ID_TYPES = [pa.list_(pa.uint16()), pa.list_(pa.uint32())]


class Shard:
    """Arrays of one shard: ids [tokens], offsets [rows + 1], segment_b [rows], labels [rows] or None.

    `is_labelled` is a bit for each row, None where every row has a label; `path` is None for rows in memory.
    """

    def __init__(
        self,
        ids: np.ndarray,
        offsets: np.ndarray,
        segment_b: np.ndarray,
        labels: np.ndarray | None = None,
        is_labelled: np.ndarray | None = None,
        max_length: int | None = None,
        path: Path | None = None,
    ) -> None:
        self.ids, self.offsets, self.segment_b, self.labels = ids, offsets, segment_b, labels
        self.is_labelled, self._max_length, self.path = is_labelled, max_length, path

    @classmethod
    def map(cls, path: Path, max_length: int | None = None) -> "Shard":
        """Memory-maps a file. Raises ArrowException, OSError, ValueError, KeyError when it is no shard."""
        file = pa.memory_map(str(path), "r")
        first = file.read_buffer(1)  # Arrow has what is asked of a mapped file read from the disk: so not all
        # else the system reads up to megabytes around each row, of which a shuffled order needs a fraction
        _advise(first.address, file.size(), mmap.MADV_RANDOM)
        content = pa.foreign_buffer(first.address, file.size(), base=first)
        reader = pa.ipc.open_file(content)
        if reader.num_record_batches != 1:
            raise ValueError(f"{reader.num_record_batches} record batches, not 1")
        batch = reader.get_batch(0)
        rows, segment_b = batch.column("input_ids"), batch.column("segment_b")
        label = batch.column("label") if "label" in batch.schema.names else pa.nulls(0, pa.float64())
        types = segment_b.type, label.type
        if rows.type not in ID_TYPES or types != (pa.int32(), pa.float64()) or rows.null_count:
            raise ValueError(f"columns of {rows.type}, {types[0]}, {types[1]}")

        def view(buffer: pa.Buffer, dtype: Any, count: int) -> np.ndarray:
            # an array of Arrow's, kept for this, would take a kilobyte
            return np.frombuffer(content, dtype, count, buffer.address - content.address)

        ids = view(rows.buffers()[3], rows.type.value_type.to_pandas_dtype(), len(rows.values))
        offsets = view(rows.buffers()[1], np.int32, len(rows) + 1)
        if offsets[0] != 0 or offsets[-1] != len(ids):
            raise ValueError("row offsets do not span the ids")
        labels = is_labelled = None
        if label.null_count < len(label):
            bits, values = label.buffers()
            labels = view(values, np.float64, len(label))
            is_labelled = None if bits is None else view(bits, np.uint8, -(-len(label) // 8))
        starts = view(segment_b.buffers()[1], np.int32, len(segment_b))
        return cls(ids, offsets, starts, labels, is_labelled, max_length, path)

    def __len__(self) -> int:
        return len(self.segment_b)

    def lengths(self, first: int, last: int) -> np.ndarray:
        """Tokens of rows [first, last), int32."""
        return np.diff(self.offsets[first : last + 1]).astype(np.int32)

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
        arrays = [self.offsets[first : last + 1], self.segment_b[first:last]]
        if self.labels is not None:
            arrays.append(self.labels[first:last])
        arrays.append(self.ids[self.offsets[first] : self.offsets[last]])
        for array in arrays:
            _advise(array.ctypes.data, array.nbytes, mmap.MADV_WILLNEED)

    def __reduce__(self) -> tuple:
        # a worker process maps the file again instead of receiving its content
        if self.path is not None:
            return Shard.map, (self.path, self._max_length)
        return Shard, (self.ids, self.offsets, self.segment_b, self.labels)


def open_listed(folder: Path, entry: dict[str, Any], id_type: str, verify: bool) -> Shard:
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
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a readable shard ({error}). {REBUILD}") from error
    rows, tokens = len(shard), len(shard.ids)
    if (rows, tokens) != (entry["rows"], entry["tokens"]) or shard.ids.dtype != id_type:
        found = f"{rows} rows, {tokens} tokens of {shard.ids.dtype}"
        listed = f"{entry['rows']} rows, {entry['tokens']} tokens of {id_type}"
        raise UserError(f"{path}: {found}, where {MANIFEST} says {listed}. {REBUILD}")
    return shard


def _advise(address: int, size: int, advice: int) -> None:
    # what comes of it is speed alone: where the system has no ear for it, rows are the same
    start = address - address % mmap.PAGESIZE
    _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(address + size - start), advice)


_LIBC = ctypes.CDLL(None)
