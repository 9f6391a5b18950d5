"""What the pieces of a corpus hold, what is known of them from earlier, and who builds which."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tinybert_dist.config import UserError
from tinybert_dist.data.source_files import HUB
from tinybert_dist.data.sources import Piece, kind_of, version_of
from tinybert_dist.data.storage import is_url, shown
from tinybert_dist.data.tables import first_byte, open_parquet
from tinybert_dist.data.text import BLOCK_BYTES, skip_line
from tinybert_dist.files import fingerprint, read_json, sha256_of, write_json

SHARE_FILES = "share-*-of-*.json"


@dataclass(frozen=True)
class Share:
    """One of `count` commands that build a corpus together; `index` from 0. They share the folder alone."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


def content_of(piece: Piece) -> str:
    """Hex digest that stands for what the piece holds.

    sha256 of its lines or row groups, which are read for it; of the file where that is one piece. What lies
    behind a URL or at the hub is not fetched twice: there the version of the source stands for it.
    """
    source, start, end, _ = piece
    if source.path.startswith(HUB) or is_url(source.path):
        return f"version-{fingerprint([source.name, source.version, start, end])}"
    if end is None:
        return sha256_of(source.path)
    digest = hashlib.sha256()
    with open(source.path, "rb") as file:
        if kind_of(source) == "parquet":
            with open_parquet(source.path) as table:
                digest.update(str(table.schema_arrow.remove_metadata()).encode())
                at, stop = (first_byte(table, group, source.size_bytes) for group in (start, end))
        else:
            at, stop = (_line_start(file, offset) for offset in (start, end))
        file.seek(at)
        while at < stop and (block := file.read(min(BLOCK_BYTES, stop - at))):
            digest.update(block)
            at += len(block)
    return digest.hexdigest()


def require_unchanged(piece: Piece) -> None:
    """Raises UserError if the source is no longer as it was found: half old, half new may have been read."""
    if version_of(piece.source) != piece.source.version:
        raise UserError(f"{shown(piece.source.path)} changed while it was read. Run the command again.")


def record_of(piece: Piece, content: str, part: str) -> dict[str, Any]:
    """What the manifest says of a piece."""
    source, start, end, size_bytes = piece
    known = {"name": source.name, "start": start, "end": end, "size_bytes": size_bytes}
    return known | {"version": source.version, "content": content, "part": part}


class KnownContent:
    """Contents of pieces from the manifest and from other shares, so that unchanged sources are not read."""

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        self._records = {(r["name"], r["start"], r["end"]): r for r in records}

    def of(self, piece: Piece) -> str | None:
        """The content if the source has the version it had then, else None."""
        record = self._records.get((piece.source.name, piece.start, piece.end))
        return record["content"] if record and record["version"] == piece.source.version else None

    def has(self, piece: Piece) -> bool:
        """Whether the piece was built, from this version of the source or another one."""
        return (piece.source.name, piece.start, piece.end) in self._records


def write_share(folder: Path, share: Share, records: Sequence[dict[str, Any]]) -> None:
    """Tells the other shares what this one has built."""
    write_json(folder / f"share-{share.index + 1}-of-{share.count}.json", list(records))


def read_shares(folder: Path) -> list[dict[str, Any]]:
    """The records of all shares in the folder."""
    return [record for path in sorted(folder.glob(SHARE_FILES)) for record in read_json(path)]


def assign(sizes_bytes: Sequence[int], num_shares: int) -> list[list[int]]:
    """Which pieces each share builds: largest first to the least loaded. Pure: all shares agree."""
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    loads = [0] * num_shares
    for i in sorted(range(len(sizes_bytes)), key=lambda i: (-sizes_bytes[i], i)):
        share = loads.index(min(loads))
        shares[share].append(i)
        # an empty piece costs something too
        loads[share] += sizes_bytes[i] + 1
    return shares


def _line_start(file: BinaryIO, at: int) -> int:
    # where the first line begins that does so at or after `at`
    if at == 0:
        return 0
    file.seek(at - 1)
    return at - 1 + skip_line(file)
