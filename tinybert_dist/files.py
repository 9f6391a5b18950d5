"""Small durable-file primitives: atomic writes, digests, fingerprints."""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, TypeVar

LATE_FILES_S = 60.0  # NFS keeps what it knows of a folder for as long (acdirmax)
SizedT = TypeVar("SizedT", bound=Sized)


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Writes `content` so that a reader, or a crash, sees the old file or the new one and never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # process ids repeat: on other machines, in containers
    temporary = path.with_name(f".{path.name}.{secrets.randbelow(10**12)}.tmp")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: str | Path) -> None:
    """Makes a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def still_missing(find_missing: Callable[[], SizedT]) -> SizedT:
    """What `find_missing` finds; of a launch on several machines when their disk has shown what all wrote.

    Else two that end together might each miss the other's last file, and nobody would join them.
    """
    machines = max(int(os.environ.get(name, "1")) for name in ("GROUP_WORLD_SIZE", "SLURM_STEP_NUM_NODES"))
    give_up_at = time.monotonic() + (LATE_FILES_S if machines > 1 else 0)
    while (missing := find_missing()) and time.monotonic() < give_up_at:
        time.sleep(0.5)
    return missing


def is_first(mark: Path) -> bool:
    """Whether of all processes that see its disk this one is the first to ask; makes the file `mark`.

    Raises FileNotFoundError when its folder is gone.
    """
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def stamp_of(stat: os.stat_result) -> str:
    """Tells without reading it whether a file is still the same: size, and both times of change.

    That of the entry too: the other one can be set to anything.
    """
    return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"


def sha256_of(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _sha256(file)
        )


def _sha256(file) -> str:
    # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """16 hex digits that identify a JSON-serialisable value."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:16]


def write_json(path: str | Path, value: Any) -> None:
    """Atomic, indented, UTF-8 JSON."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """JSON from a UTF-8 file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
