"""The raw files that a corpus path stands for: local, behind URLs, or shards of a hub dataset."""

import functools
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

from tinybert_dist.config import UserError
from tinybert_dist.data.storage import filesystem_of, is_url, shown, unreadable
from tinybert_dist.data.tables import ROW_FORMATS
from tinybert_dist.data.text import format_suffix
from tinybert_dist.files import fingerprint, stamp_of

KNOWN_SUFFIXES = {".txt", ".text", *ROW_FORMATS}
HUB = "hub:"
# what the file systems of fsspec call that which changes with the content
VERSION_KEYS = ["ETag", "etag", "Content-MD5", "md5Hash", "sha256", "Last-Modified", "LastModified"]
VERSION_KEYS += ["last_modified", "mtime", "updated", "created", "VersionId", "generation"]


@dataclass(frozen=True)
class Source:
    """One raw file of a corpus: local, behind an fsspec URL, or one shard of a hub dataset.

    `path`: what is opened. `name`: relative to what the user gave; no machine path, no credentials.
    `size_bytes`: as stored, 0 where unknown. `version`: tells changed content without reading it.
    `copied_version`: of a local file, what a copy that keeps its times (`cp -p`, `rsync -a`) has, too.
    """

    path: str
    name: str
    size_bytes: int
    version: str
    copied_version: str = ""


def find_sources(path: str | Path, what: str = "--train_file_path") -> list[Source]:
    """The files of a file, folder, glob, fsspec URL (of any of these), or hub:NAME[:CONFIG[:SPLIT]], sorted.

    A folder is searched recursively for known extensions, hidden names left out. Raises UserError when there
    is none, or one cannot be read.
    """
    path = str(path)
    if path.startswith(HUB):
        from tinybert_dist.data.hub import find_shards

        sources = [Source(*shard) for shard in find_shards(path, what)]
    elif is_url(path) and not path.startswith("file://"):
        sources = _find_remote(path, what)
    else:
        sources = _find_local(path.removeprefix("file://"), what)
    # epoch_N_metrics.json describes the original's epoch_N.json and holds no text
    described = {f"{s.name[:-5]}_metrics.json" for s in sources if s.name.endswith(".json")}
    return [source for source in sources if source.name not in described]


def version_of(source: Source) -> str:
    """The version as it is now; a file that changed since it was found has another one."""
    if source.path.startswith(HUB):
        from tinybert_dist.data.hub import shard_version

        return shard_version(source.path)
    if is_url(source.path):
        filesystem_of(source.path)[0].invalidate_cache()
        return _remote(source.path, source.name).version
    return _local(Path(source.path), source.name).version


def _find_local(path: str, what: str) -> list[Source]:
    root = Path(path)
    if root.is_file():
        return [_local(root, root.name)]
    if root.is_dir():
        names = _with_known_suffix(sorted(_walk(root)), path, what)
        return [_local(root / name, name) for name in names]
    if has_magic(path):
        files = sorted(p for p in map(Path, glob(path, recursive=True)) if p.is_file())
        if not files:
            raise UserError(
                f"{what} {path}: the pattern matches no file. Check it with ls, and quote it in the shell."
            )
        base = _fixed_part(path)
        return [_local(file, file.relative_to(base).as_posix()) for file in files]
    hint = (
        f" Or is it a dataset of the hub? Then give hub:{path}"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", path)
        else ""
    )
    raise UserError(
        f"{what} {path}: no such file or folder. Give a file, a folder, a quoted glob pattern or a URL.{hint}"
    )


def _walk(root: Path) -> Iterable[str]:
    def stop(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}. Check the folder's permissions.") from error

    for folder, folders, files in os.walk(root, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((Path(folder) / name).relative_to(root).as_posix() for name in files)


def _local(path: Path, name: str) -> Source:
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):
            raise UserError(f"{path}: not a regular file. Write its content to one.")
        with open(path, "rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Check the file, its link and its permissions.") from error
    return Source(str(path), name, stat.st_size, stamp_of(stat), f"{stat.st_size}-{stat.st_mtime_ns}")


def _find_remote(url: str, what: str) -> list[Source]:
    file_system, path = filesystem_of(url)
    try:
        # web servers list nothing: there a question mark starts the query
        if "*" in path or (has_magic(path) and not url.startswith("http")):
            base = str(_fixed_part(path))
            # hidden ones are no match, as on the local disk
            relative = {
                _relative(p, base): p for p in sorted(file_system.glob(path)) if file_system.isfile(p)
            }
            names = [name for name in relative if not _is_hidden(name)]
        elif not url.startswith("http") and file_system.isdir(path):
            relative = {_relative(p, path): p for p in sorted(file_system.find(path))}
            names = _with_known_suffix(list(relative), shown(url), what)
        else:
            return [_remote(url, PurePosixPath(shown(url)).name)]
    except UserError:
        raise
    except Exception as error:  # each backend has its own
        raise unreadable(url, error) from None
    if not names:
        raise UserError(f"{what} {shown(url)}: matches no file. Check the address and the pattern.")
    return [_remote(file_system.unstrip_protocol(relative[name]), name) for name in names]


def _remote(url: str, name: str) -> Source:
    file_system, path = filesystem_of(url)
    try:
        info: dict[str, Any] = file_system.info(path)
    except Exception as error:  # each backend has its own
        raise unreadable(url, error) from None
    if info.get("type") == "directory":
        raise unreadable(url, IsADirectoryError("a folder, not a file"))
    size = info.get("size") or 0
    return Source(url, name, size, fingerprint([size, *(info.get(key) for key in VERSION_KEYS)]))


def _with_known_suffix(names: list[str], path: str, what: str) -> list[str]:
    visible = [name for name in names if not _is_hidden(name)]
    known = [name for name in visible if format_suffix(name) in KNOWN_SUFFIXES]
    if not known:
        suffixes = " ".join(sorted(KNOWN_SUFFIXES))
        raise UserError(
            f"{what} {path}: the folder holds no file with a known extension ({suffixes}, also .gz .zst)."
        )
    if other := sorted(set(visible).difference(known)):
        some = ", ".join(other[:3]) + (", ..." if len(other) > 3 else "")
        _tell_once(f"note: {what} {path}: {len(other)} files of other kinds left out: {some}")
    return known


@functools.cache
def _tell_once(message: str) -> None:
    print(message, file=sys.stderr)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _fixed_part(pattern: str) -> PurePosixPath:
    parts = PurePosixPath(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if has_magic(part)), len(parts))
    return PurePosixPath(*parts[:fixed])


def _relative(path: str, folder: str) -> str:
    return path.removeprefix(folder).lstrip("/")
