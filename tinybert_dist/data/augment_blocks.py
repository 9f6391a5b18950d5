"""Blocks of an augmented file: finished one by one, by any process, in any order; joined by whoever sees all.

Processes share nothing but a hidden folder beside the output. Block b is `<b>` with the bytes and `<b>.json`
with their sha256 and what is to be known about them; the second is written last, so a block is there whole or
not at all, whenever its process dies.
"""

import hashlib
import io
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from tinybert_dist.config import StageFailed
from tinybert_dist.files import fsync_folder, is_first, read_json, sha256_of, write_atomic, write_json

MANIFEST = "manifest.json"
# of block files; a shard is what one worker opens at a time
SHARD_BYTES = 64 << 20


class RowFormat(Protocol):
    """How rows are stored."""

    def pack(self, rows: Sequence[Sequence[str]]) -> bytes:
        """Rows of a block as bytes."""
        ...

    def join(self, blocks: Iterator[bytes], target: Path) -> None:
        """Writes what pack() gave, block by block, to `target` (a file or a folder)."""
        ...


class TsvRows:
    """One file of lines with tab-separated fields, quoting off."""

    def __init__(self, header: Sequence[str] | None) -> None:
        """`header`: the first line, where there is one."""
        self._header = header

    def pack(self, rows: Sequence[Sequence[str]]) -> bytes:
        """One line per row."""
        return "".join("\t".join(row) + "\n" for row in rows).encode("utf-8")

    def join(self, blocks: Iterator[bytes], target: Path) -> None:
        """Header and lines."""
        with open(target, "wb") as file:
            file.write(self.pack([self._header] if self._header else []))
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())


class ParquetRows:
    """A folder of Parquet shards, every column as strings, and a manifest that is written last.

    A block becomes a row group, so shards are read, as they are written, a block at a time.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """`names`: of the columns."""
        self._schema = pa.schema([(name, pa.string()) for name in names])

    def pack(self, rows: Sequence[Sequence[str]]) -> bytes:
        """A Parquet file in memory."""
        arrays = [pa.array([row[c] for row in rows], pa.string()) for c in range(len(self._schema))]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_arrays(arrays, schema=self._schema), buffer)
        return buffer.getvalue()

    def join(self, blocks: Iterator[bytes], target: Path) -> None:
        """Shards of about SHARD_BYTES, then the manifest: columns, rows, size and sha256 of each shard."""
        parts: list[dict[str, Any]] = []
        target.mkdir()
        block = next(blocks, None)
        while block is not None:
            path = target / f"part-{len(parts):05d}.parquet"
            size_bytes = num_rows = 0
            with pq.ParquetWriter(path, self._schema) as writer:
                while block is not None and size_bytes < SHARD_BYTES:
                    table = pq.read_table(io.BytesIO(block))
                    writer.write_table(table)
                    size_bytes, num_rows = size_bytes + len(block), num_rows + len(table)
                    block = next(blocks, None)
            facts = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            parts.append({"name": path.name, "rows": num_rows} | facts)
        rows = sum(part["rows"] for part in parts)
        write_json(target / MANIFEST, {"columns": self._schema.names, "rows": rows, "parts": parts})


class Blocks:
    """The blocks of one output file or folder, and the output itself when all are there."""

    def __init__(self, output: Path, fingerprint: str, num_blocks: int, rows: RowFormat) -> None:
        """`fingerprint` stands for everything the content depends on: blocks of another are not looked at."""
        self.output, self._fingerprint, self._num_blocks, self._rows = output, fingerprint, num_blocks, rows
        self._state_file = output.with_name(f".{output.name}.state.json")
        self._folder = output.with_name(f".{output.name}.{fingerprint}.blocks")

    def finished(self) -> dict[str, Any] | None:
        """What join() returned, if this very output is already there, whole."""
        try:
            state = read_json(self._state_file)
            same = state["fingerprint"] == self._fingerprint and state["bytes"] == _sizes(self.output)
        except (OSError, ValueError, KeyError):
            return None
        return state["summary"] if same else None

    def missing(self, blocks: Iterable[int], verify: bool = False) -> list[int]:
        """Those of `blocks` that are not there, or, with `verify`, are not as they were written."""
        return [b for b in blocks if not self._is_there(b, verify)]

    def write(self, block: int, rows: Sequence[Sequence[str]], facts: dict[str, Any]) -> None:
        """Stores a block and its `facts`."""
        data = self._rows.pack(rows)
        write_atomic(self._folder / str(block), data)
        digest = hashlib.sha256(data).hexdigest()
        write_json(self._folder / f"{block}.json", {"sha256": digest, "facts": facts})

    def join(
        self, summarise: Callable[[list[dict[str, Any]]], dict[str, Any]]
    ) -> tuple[dict[str, Any], bool]:
        """Writes the output out of all blocks; `summarise` of their facts in order, and whether it was first.

        It appears at once and whole. Another process may do the same at the same time: the bytes are the
        same. Raises StageFailed when a block is damaged.
        """
        first = False
        staged = self._folder / f"joined.{uuid.uuid4().hex}"
        try:
            summary = summarise([self._state(b)["facts"] for b in range(self._num_blocks)])
            self._rows.join(self._read(), staged)
            if self.finished() is None:
                self._publish(staged)
                sizes = _sizes(self.output)
                state = {"fingerprint": self._fingerprint, "bytes": sizes, "summary": summary}
                write_json(self._state_file, state)
            first = is_first(self._folder / "joined")
        except FileNotFoundError:
            # somebody else was faster and has cleared the blocks away
            there = self.finished()
            if there is None:
                raise
            summary = there
        finally:
            _remove(staged)
        self.clear()
        return summary, first

    def clear(self) -> None:
        """Removes the blocks, those of other fingerprints too: the output has taken their place."""
        name = re.compile(rf"\.{re.escape(self.output.name)}\.[0-9a-f]{{16}}\.blocks")
        for folder in self.output.parent.iterdir():
            if name.fullmatch(folder.name):
                _remove(folder)

    def _is_there(self, block: int, verify: bool) -> bool:
        try:
            digest = self._state(block)["sha256"]
            path = self._folder / str(block)
            return sha256_of(path) == digest if verify else path.is_file()
        except (OSError, ValueError, KeyError):
            return False

    def _state(self, block: int) -> dict[str, Any]:
        return read_json(self._folder / f"{block}.json")

    def _read(self) -> Iterator[bytes]:
        for b in range(self._num_blocks):
            data = (self._folder / str(b)).read_bytes()
            if hashlib.sha256(data).hexdigest() != self._state(b)["sha256"]:
                raise StageFailed(
                    f"{self._folder / str(b)} is damaged: its bytes are not those that were written. The "
                    "same command makes it again."
                )
            yield data

    def _publish(self, staged: Path) -> None:
        if staged.is_dir() and self.output.is_dir() and any(self.output.iterdir()):
            # a folder takes the place of an empty one only
            os.rename(self.output, self._folder / f"replaced.{uuid.uuid4().hex}")
        os.replace(staged, self.output)
        fsync_folder(self.output.parent)


def _sizes(output: Path) -> dict[str, int]:
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    return {path.name: path.stat().st_size for path in files}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
