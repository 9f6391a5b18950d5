"""Is the output folder free for this run, writable, and on a disk with room?"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from tinybert_dist.config import UserError
from tinybert_dist.data.source_files import HUB, find_sources
from tinybert_dist.data.storage import is_url
from tinybert_dist.data.text import is_compressed
from tinybert_dist.data.token_manifest import MANIFEST
from tinybert_dist.preflight.findings import Finding, NotYet, error, ok, warning
from tinybert_dist.preflight.subject import Subject
from tinybert_dist.training.options import TrainingOptions
from tinybert_dist.training.run_folder import refuse_other_numbers, refuse_strangers_folder, stage_of_run

# token shards: 488 MB of 1 GB of English (README); what is compressed unpacks to about three times its size
TOKEN_BYTES_PER_BYTE, UNPACKED = 0.5, 3
BYTES_PER_PARAMETER = 12  # a checkpoint: float32 weight and two moments
NO_LOCKS = {"lustre": ("flock", "localflock"), "nfs": (), "nfs4": ()}


def check_folder(subject: Subject) -> Iterator[Finding]:
    """The folder is a new one, or this run's own; it can be written."""
    config = subject.config
    if not config.output_dir:
        return
    folder = Path(config.output_dir)
    if isinstance(config, TrainingOptions):
        refuse_strangers_folder(folder, stage_of_run(subject.stage, config))
        refuse_other_numbers(folder, config)
    parent = _existing(folder)
    if not parent.is_dir():
        raise UserError(f"--output_dir {folder}: {parent} is a file. Give another folder.")
    if os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise UserError(f"--output_dir {folder}: {os.strerror(errno.EROFS)}. Give a folder on another disk.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(
            f"--output_dir {folder}: {parent} cannot be written. Give another folder, or correct "
            "its permissions."
        )
    yield from _check_locks(parent)


def check_space(subject: Subject) -> Iterator[Finding]:
    """Checkpoints, the finished model and prepared tokens fit on the disk of the output folder."""
    config = subject.config
    if not config.output_dir:
        return
    # what an earlier attempt has written is there already
    free = _free_bytes(Path(config.output_dir)) + _own_bytes(Path(config.output_dir))
    parts, least = {"tokens": _token_bytes(subject)}, 0
    if isinstance(config, TrainingOptions):
        checkpoint = subject.trained.num_parameters * BYTES_PER_PARAMETER
        # the newest ones, the best, and the one that is being written
        parts["checkpoints"] = checkpoint * (config.keep_checkpoints + 2)
        parts["finished model"] = checkpoint // 3
        least = checkpoint + parts["finished model"]
    needed = sum(parts.values())
    account = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
    if free < needed:
        find = error if free < least else warning
        yield find(
            f"--output_dir {config.output_dir}: {_gib(free)} free on its disk, about {_gib(needed)} needed "
            f"({account}).",
            "Make room, give a folder on another disk, or a smaller --keep_checkpoints.",
        )
    else:
        yield ok(f"{_gib(free)} free, about {_gib(needed)} needed")


def _token_bytes(subject: Subject) -> int:
    config = subject.config
    path = getattr(config, "train_file_path", None) or getattr(config, "pretrain_file_path", None)
    if path is None or getattr(config, "streaming", False) or (Path(path) / MANIFEST).is_file():
        return 0
    if path.startswith(HUB) or is_url(path):
        raise NotYet(f"the size of {path} is not asked for before the stage starts")
    if subject.earlier.step_of(path):
        raise NotYet(f"the size of {path} is not known yet")
    sizes = (
        source.size_bytes * (UNPACKED if is_compressed(source.path) else 1) for source in find_sources(path)
    )
    return int(sum(sizes) * TOKEN_BYTES_PER_BYTE)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _free_bytes(folder: Path) -> int:
    return psutil.disk_usage(str(_existing(folder))).free


def _own_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


def _check_locks(folder: Path) -> Iterator[Finding]:
    mounts = [m for m in psutil.disk_partitions(all=True) if Path(m.mountpoint) in (folder, *folder.parents)]
    if not mounts:
        return
    mount = max(mounts, key=lambda mount: len(mount.mountpoint))
    options = set(mount.opts.split(","))
    wanted = NO_LOCKS.get(mount.fstype)
    if wanted is not None and ("nolock" in options or (wanted and not options.intersection(wanted))):
        yield warning(
            f"{mount.mountpoint} ({mount.fstype}) is mounted without file locks: a second job on one "
            "folder is noticed only when it commits.",
            f"Mount it with {wanted[0] if wanted else 'locks'}, or let no two jobs share an --output_dir.",
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**29 else f"{size / 2**20:,.1f} MiB"
