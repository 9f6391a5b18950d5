"""Token shards: rows of ids in memory-mapped Arrow files, with a manifest that is written last.

A folder holds `tokens-NNNNN.arrow` (one record batch each: input_ids list<uint16|uint32>, segment_b int32,
label float64) and `manifest.json` with rows, tokens, bytes and sha256 of each shard. No manifest: no dataset.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tinybert_dist.config import UserError
from tinybert_dist.files import fingerprint, fsync_folder, read_json, sha256_of, write_json

FORMAT, VERSION = "tinybert_dist.tokens", 1
MANIFEST = "manifest.json"
ROWS_PER_SHARD = 1 << 16
TOKENS_PER_SHARD = 1 << 22
REBUILD = "Delete the folder and prepare it again."


class Sample(NamedTuple):
    """One row. `segment_b` is the index of the first token of segment 1, len(input_ids) if there is none."""

    row: int
    input_ids: np.ndarray
    segment_b: int
    label: float | None


class TokenWriter:
    """Writes a token folder: `with TokenWriter(...) as writer: writer.add(ids, segment_b)`.

    The manifest is written at the end of the block, atomically; an exception leaves a folder without one,
    which TokenDataset.open refuses. `header` may be filled until then. An older dataset there is replaced.
    A shard ends after `rows_per_shard` rows or about 4.2 M tokens, whichever comes first.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        rows_per_shard: int = ROWS_PER_SHARD,
        vocab_size: int,
        header: dict[str, Any],
    ) -> None:
        assert rows_per_shard > 0 and vocab_size > 0
        self.folder, self.header = Path(folder), header
        self.rows_per_shard, self.vocab_size = rows_per_shard, vocab_size
        self.id_type = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self._shards: list[dict[str, Any]] = []
        self._clear()

    def __enter__(self) -> "TokenWriter":
        self.folder.mkdir(parents=True, exist_ok=True)
        # the manifest first: without it the remains of an older dataset cannot be taken for a whole one
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for path in self.folder.glob("tokens-*.arrow"):
            path.unlink()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()
            _write_manifest(self.folder, self._shards, self.vocab_size, self.id_type.name, self.header)

    def add(self, input_ids: Sequence[int] | np.ndarray, segment_b: int, label: float | None = None) -> None:
        """One row; ids in [0, vocab_size), 0 <= segment_b <= len(input_ids)."""
        assert 0 <= segment_b <= len(input_ids), f"segment_b {segment_b} of {len(input_ids)} tokens"
        ids = np.asarray(input_ids, dtype=self.id_type)
        self._ids.append(ids)
        self._segment_b.append(segment_b)
        self._labels.append(None if label is None or math.isnan(label) else float(label))
        self._num_tokens += len(ids)
        if len(self._ids) >= self.rows_per_shard or self._num_tokens >= TOKENS_PER_SHARD:
            self._flush()

    def _clear(self) -> None:
        self._ids: list[np.ndarray] = []
        self._segment_b: list[int] = []
        self._labels: list[float | None] = []
        self._num_tokens = 0

    def _flush(self) -> None:
        if not self._ids:
            return
        offsets = np.zeros(len(self._ids) + 1, np.int32)
        np.cumsum([len(ids) for ids in self._ids], out=offsets[1:])
        values = np.concatenate(self._ids)
        assert values.size == 0 or values.max() < self.vocab_size, f"id {values.max()} of {self.vocab_size}"
        batch = pa.record_batch(
            {
                "input_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)),
                "segment_b": pa.array(self._segment_b, pa.int32()),
                "label": pa.array(self._labels, pa.float64()),
            }
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        content = sink.getvalue()
        name = f"tokens-{len(self._shards):05d}.arrow"
        with open(self.folder / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._shards.append(
            {
                "file": name,
                "rows": len(self._ids),
                "tokens": int(values.size),
                "bytes": content.size,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
        self._clear()


def write_joined_manifest(folder: str | Path, parts: Sequence[str], header: dict[str, Any]) -> None:
    """Makes one dataset of token folders inside `folder`, in that order; no shard is copied or moved."""
    folder = Path(folder)
    manifests = [_read_manifest(folder / part) for part in parts]
    assert manifests and len({(m["vocab_size"], m["id_type"]) for m in manifests}) == 1
    shards = [
        shard | {"file": f"{part}/{shard['file']}"}
        for part, manifest in zip(parts, manifests, strict=True)
        for shard in manifest["shards"]
    ]
    _write_manifest(folder, shards, manifests[0]["vocab_size"], manifests[0]["id_type"], header)


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
        manifest = _read_manifest(folder)
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
    name = PurePosixPath(entry["file"])
    if name.is_absolute() or ".." in name.parts:
        raise UserError(f"{folder / MANIFEST}: shard {entry['file']!r} lies outside the folder. {REBUILD}")
    path = folder / name
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


def _write_manifest(
    folder: Path, shards: list[dict[str, Any]], vocab_size: int, id_type: str, header: dict[str, Any]
) -> None:
    fsync_folder(folder)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "vocab_size": vocab_size,
        "id_type": id_type,
        "rows": sum(shard["rows"] for shard in shards),
        "tokens": sum(shard["tokens"] for shard in shards),
        "header": header,
        "shards": shards,
    }
    write_json(folder / MANIFEST, manifest)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder}: no {MANIFEST}, so no finished token folder. Run prepare_corpus into it (again)."
        )
    try:
        manifest = read_json(path)
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{path}: written by something else ({manifest['format']!r}). Choose another folder."
            )
        if manifest["version"] != VERSION:
            raise UserError(f"{path}: version {manifest['version']}, this program reads {VERSION}. {REBUILD}")
        totals = tuple(sum(shard[key] for shard in manifest["shards"]) for key in ("rows", "tokens"))
        if totals != (manifest["rows"], manifest["tokens"]):
            raise UserError(f"{path}: its totals are not the sums of its shards: damaged. {REBUILD}")
        _ = manifest["id_type"], manifest["vocab_size"], manifest["header"]
        for shard in manifest["shards"]:
            _ = shard["file"], shard["bytes"], shard["sha256"]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a readable manifest ({error!r}). {REBUILD}") from error
    return manifest
