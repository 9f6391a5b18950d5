"""Writes token shards; tokens.py reads them and describes the format."""

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tinybert_dist.data.token_codes import Lists, encode
from tinybert_dist.data.token_manifest import MANIFEST, write_manifest
from tinybert_dist.data.token_shards import SHORT_IDS

ROWS_PER_SHARD = 1 << 16
TOKENS_PER_SHARD = 1 << 22


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
            write_manifest(self.folder, self._shards, self.vocab_size, self.header)

    def add(self, input_ids: Sequence[int] | np.ndarray, segment_b: int, label: float | None = None) -> None:
        """One row; ids in [0, vocab_size), 0 <= segment_b <= len(input_ids)."""
        assert 0 <= segment_b <= len(input_ids), f"segment_b {segment_b} of {len(input_ids)} tokens"
        ids = np.asarray(input_ids, dtype=np.uint32)
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
        lead, rest, short_ids = encode(Lists(values, offsets), self.vocab_size)
        columns = {
            "lead": pa.ListArray.from_arrays(lead.offsets, lead.values),
            "rest": pa.ListArray.from_arrays(rest.offsets, rest.values),
            "segment_b": pa.array(self._segment_b, pa.int32()),
        }
        if any(label is not None for label in self._labels):
            columns["label"] = pa.array(self._labels, pa.float64())
        batch = pa.record_batch(columns, metadata={SHORT_IDS: " ".join(map(str, short_ids))})
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
                "max_length": int(np.diff(offsets).max()),
                "bytes": content.size,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
        self._clear()
