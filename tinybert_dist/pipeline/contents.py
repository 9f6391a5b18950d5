"""What the files hold that a step reads from outside: sha256, remembered while size and times stay."""

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from glob import has_magic
from pathlib import Path
from typing import NamedTuple

from tinybert_dist.data.source_files import find_sources
from tinybert_dist.data.storage import is_url
from tinybert_dist.files import sha256_of, stamp_of

WHOLE_BYTES = 1 << 30  # of larger files size, time of change and evenly spread blocks
NUM_BLOCKS, BLOCK_BYTES = 64, 1 << 16
# hidden files, what has been set aside, and what augment logs beside its data
NEVER = (".*", "*.before-[0-9]*", "wandb")


class Content(NamedTuple):
    """One file: `version` tells without reading it that nothing has changed, `digest` what it holds."""

    version: str
    digest: str


def contents_of(
    path: str,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    known: Mapping[str, Content] | None = None,
) -> dict[str, Content] | None:
    """Each file of a file, folder, pattern or URL by its name in there; None when nothing is there.

    In a folder: `only` the top-level names that match one of these, else all; `without`: names of files and
    folders that are passed over. `known`: what was found before, by name. Raises UserError for a URL that
    cannot be looked at.
    """
    known = known or {}
    if is_url(path) and not path.startswith("file://"):
        return {source.name: Content(source.version, source.version) for source in find_sources(path)}
    root = Path(path.removeprefix("file://"))
    if root.is_file():
        files = {root.name: root}
    elif root.is_dir():
        files = _files_in(root, only, (*NEVER, *without))
    elif has_magic(path):
        files = {source.name: Path(source.path) for source in find_sources(path)} if _matches(root) else {}
    else:
        files = {}
    return {name: _content(file, known.get(name)) for name, file in files.items()} or None


def _files_in(root: Path, only: Sequence[str], without: Sequence[str]) -> dict[str, Path]:
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [] if only else sorted(name for name in folders if not matches_any(name, without))
        for name in sorted(names):
            file = Path(folder, name)
            if not matches_any(name, without) and (not only or matches_any(name, only)) and file.is_file():
                found[file.relative_to(root).as_posix()] = file
    return found


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file's name fits one of the patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def _matches(pattern: Path) -> bool:
    return next(Path(pattern.anchor or ".").glob(str(pattern.relative_to(pattern.anchor))), None) is not None


def _content(file: Path, known: Content | None) -> Content:
    version = stamp_of(file.stat())
    return known if known and known.version == version else Content(version, _digest(str(file), version))


@functools.cache
def _digest(file: str, version: str) -> str:
    size_bytes, time_ns, _ = map(int, version.split("-"))
    if size_bytes <= WHOLE_BYTES:
        return sha256_of(file)[:16]
    digest = hashlib.sha256(f"{size_bytes} {time_ns}".encode())
    with open(file, "rb") as stream:
        for i in range(NUM_BLOCKS):
            stream.seek(i * (size_bytes - BLOCK_BYTES) // (NUM_BLOCKS - 1))
            digest.update(stream.read(BLOCK_BYTES))
    return digest.hexdigest()[:16]
