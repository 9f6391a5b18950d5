"""Token shards: rows of ids in memory-mapped Arrow files, with a manifest that is written last.

A folder holds `tokens-NNNNN.arrow` (one record batch each: input_ids list<uint16|uint32>, segment_b int32,
label float64) and `manifest.json` with rows, tokens, bytes and sha256 of each shard. No manifest: no dataset.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tinybert_dist.config import UserError
from tinybert_dist.data.token_manifest import MANIFEST, REBUILD, read_manifest
from tinybert_dist.files import fingerprint, sha256_of


class Sample(NamedTuple):
    """One row. `segment_b` is the index of the first token of segment 1, len(input_ids) if there is none."""

    row: int
    input_ids: np.ndarray
    segment_b: int
    label: float | None


class TokenDataset:
    """Rows of token ids, memory-mapped from a folder (`open`) or held in memory (`from_rows`).

    `.lengths` int32[N] tokens per row; `.labels` float64[N], nan where a row has none, or None if no row has
    one; `.header` what the writer noted; `.fingerprint` depends on the content, not on the path; picklable.
    """

    def __init__(self, shards: Sequence["_Shard"], header: dict[str, Any], content_fingerprint: str) -> None:
        self._shards = tuple(shards)
        self.header = header
        self.fingerprint = content_fingerprint
        self._index()

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> "TokenDataset":
        """Opens a folder; `verify` also reads every shard and compares its sha256.

        Raises UserError naming the damaged shard when a file, its size or its rows differ from the manifest.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        shards = [_open_listed(folder, entry, manifest["id_type"], verify) for entry in manifest["shards"]]
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
        offsets = np.zeros(len(input_ids) + 1, np.int64)
        np.cumsum([len(ids) for ids in input_ids], out=offsets[1:])
        values = np.concatenate([np.asarray(ids, np.uint32) for ids in input_ids] or [np.zeros(0, np.uint32)])
        starts = np.asarray(segment_b, np.int32)
        values_f64 = None
        if labels is not None:
            values_f64 = np.array([math.nan if label is None else label for label in labels], np.float64)
        digest = hashlib.sha256()
        for array in (offsets, values, starts, values_f64):
            digest.update(b"none" if array is None else array.tobytes())
        return cls([_Shard(values, offsets, starts, values_f64)], {}, digest.hexdigest()[:16])

    @classmethod
    def concat(cls, datasets: Sequence["TokenDataset"]) -> "TokenDataset":
        """One dataset after the other. The header keeps what all agree on, and all of them under "parts"."""
        assert datasets, "nothing to concatenate"
        if len(datasets) == 1:
            return datasets[0]
        first = datasets[0].header
        header = {k: v for k, v in first.items() if all(k in d.header and d.header[k] == v for d in datasets)}
        header["parts"] = [dataset.header for dataset in datasets]
        shards = [shard for dataset in datasets for shard in dataset._shards]
        return cls(shards, header, fingerprint([dataset.fingerprint for dataset in datasets]))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, [CLS] and [SEP] included."""
        return int(self.lengths.sum(dtype=np.int64))

    def fetch(self, rows: Sequence[int] | np.ndarray) -> list[Sample]:
        """The rows asked for, in that order; ids are int64 copies. Raises IndexError outside [0, len)."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a dataset of {len(self)}")
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        at = (rows - self._starts[shard_of]).tolist()
        samples = []
        for row, number, i in zip(rows.tolist(), shard_of.tolist(), at, strict=True):
            shard = self._shards[number]
            ids = shard.ids[shard.offsets[i] : shard.offsets[i + 1]].astype(np.int64)
            label = None if self.labels is None or math.isnan(self.labels[row]) else float(self.labels[row])
            samples.append(Sample(row, ids, int(shard.segment_b[i]), label))
        return samples

    def _index(self) -> None:
        sizes = [len(shard.segment_b) for shard in self._shards]
        self._starts = (
            np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) if sizes else np.zeros(1, int)
        )
        none = [np.zeros(0, np.int32)]
        self.lengths = np.concatenate(none + [np.diff(s.offsets).astype(np.int32) for s in self._shards])
        self.labels = None
        if any(shard.labels is not None for shard in self._shards):
            unlabelled = [
                s.labels if s.labels is not None else np.full(len(s.segment_b), np.nan) for s in self._shards
            ]
            self.labels = np.concatenate(unlabelled)

    def __getstate__(self) -> tuple:
        return self._shards, self.header, self.fingerprint

    def __setstate__(self, state: tuple) -> None:
        self._shards, self.header, self.fingerprint = state
        self._index()


class _Shard:
    """Arrays of one shard: ids [tokens], offsets [rows+1], segment_b [rows], labels [rows] or None."""

    def __init__(
        self,
        ids: np.ndarray,
        offsets: np.ndarray,
        segment_b: np.ndarray,
        labels: np.ndarray | None,
        path: Path | None = None,
    ) -> None:
        self.ids, self.offsets, self.segment_b, self.labels, self.path = ids, offsets, segment_b, labels, path

    @classmethod
    def map(cls, path: Path) -> "_Shard":
        """Memory-maps a file; arrays are views of the mapping. Raises ArrowException, OSError, ValueError."""
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        if reader.num_record_batches != 1:
            raise ValueError(f"{reader.num_record_batches} record batches, not 1")
        batch = reader.get_batch(0)
        rows = batch.column("input_ids")
        label = batch.column("label")
        ids, offsets = rows.values.to_numpy(zero_copy_only=True), rows.offsets.to_numpy(zero_copy_only=True)
        if offsets[0] != 0 or offsets[-1] != len(ids) or np.any(np.diff(offsets) < 0):
            raise ValueError("row offsets are not ascending")
        labels = None if label.null_count == len(label) else label.to_numpy(zero_copy_only=False)
        return cls(ids, offsets, batch.column("segment_b").to_numpy(zero_copy_only=True), labels, path)

    def __reduce__(self) -> tuple:
        # a worker process maps the file again instead of receiving its content
        if self.path is not None:
            return _Shard.map, (self.path,)
        return _Shard, (self.ids, self.offsets, self.segment_b, self.labels)


def _open_listed(folder: Path, entry: dict[str, Any], id_type: str, verify: bool) -> _Shard:
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
        shard = _Shard.map(path)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a readable shard ({error}). {REBUILD}") from error
    rows, tokens = len(shard.segment_b), len(shard.ids)
    if (rows, tokens) != (entry["rows"], entry["tokens"]) or shard.ids.dtype != id_type:
        found = f"{rows} rows, {tokens} tokens of {shard.ids.dtype}"
        listed = f"{entry['rows']} rows, {entry['tokens']} tokens of {id_type}"
        raise UserError(f"{path}: {found}, where {MANIFEST} says {listed}. {REBUILD}")
    return shard
