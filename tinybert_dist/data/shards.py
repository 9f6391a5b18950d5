"""Several files that are one table: a folder of shards, or train-00000-of-00004.parquet and its like."""

import re
from pathlib import Path

from tinybert_dist.config import UserError
from tinybert_dist.data.tables import ROW_FORMATS
from tinybert_dist.data.text import COMPRESSION, format_suffix
from tinybert_dist.files import read_json

FORMATS = {".txt", *ROW_FORMATS}
NUMBERED = re.compile(r"(.+)-\d+-of-(\d+)")
MANIFEST = "manifest.json"  # says how augmented shards were made, and that all are there


def shards_of(path: Path) -> list[Path]:
    """The files of `path` in sorted order: itself, those of a folder, or all of `train-*-of-00004.parquet`.

    Raises UserError for a folder without shards or with two formats, and for numbered files that are not all
    there.
    """
    if "*" in path.name:
        found = sorted(path.parent.glob(path.name))
        wanted = int(path.name.rpartition("-of-")[2].split(".")[0])
        if len(found) != wanted:
            raise UserError(f"{path}: {len(found)} of {wanted} files are there. Copy the others beside them.")
        return found
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if is_shard(file))
    if not found:
        raise UserError(f"{path}: no file in this folder with extension {' '.join(sorted(FORMATS))}.")
    other = next((file for file in found if _format(file) != _format(found[0])), None)
    if other is not None:
        raise UserError(f"{path}: {found[0].name} and {other.name} are of two formats. Keep one of them.")
    unlike = sorted(_listed(path / MANIFEST, found) ^ {file.name for file in found})
    if unlike:
        raise UserError(
            f"{path}: {unlike[0]} is there or in {MANIFEST}, and not in both. Run the augment stage again."
        )
    return found


def is_shard(file: Path) -> bool:
    """Whether a file of a folder is data: by its extension, no hidden file, no manifest."""
    return file.name[0] != "." and file.name != MANIFEST and format_suffix(file) in FORMATS and file.is_file()


def split_stem(path: Path) -> tuple[str, Path] | None:
    """("train", path) of train.csv.gz and of a folder train/, ("train", train-*-of-00004.csv) of one numbered
    file of several; None for what holds no rows.
    """
    if path.is_dir():
        has_shards = path.name[0] != "." and any(is_shard(file) for file in path.iterdir())
        return (path.name.lower(), path) if has_shards else None
    if not is_shard(path):
        return None
    name = path.with_suffix("").name if path.suffix.lower() in COMPRESSION else path.name
    stem = name[: len(name) - len(format_suffix(path))]
    if numbered := NUMBERED.fullmatch(stem):
        stem, total = numbered.groups()
        path = path.with_name(f"{stem}-*-of-{total}{path.name[len(numbered[0]) :]}")
    return stem.lower(), path


def _listed(manifest: Path, found: list[Path]) -> set[str]:
    """Names of the shards that augment wrote; those found in a folder that something else made."""
    try:
        return {part["name"] for part in read_json(manifest)["parts"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {file.name for file in found}


def _format(file: Path) -> str:
    suffix = format_suffix(file)
    return ROW_FORMATS.get(suffix, suffix)
