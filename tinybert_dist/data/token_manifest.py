"""manifest.json of a token folder: rows, tokens, longest row, bytes and sha256 of each shard.

No manifest: no dataset.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tinybert_dist.config import UserError
from tinybert_dist.files import fsync_folder, read_json, write_json

FORMAT, VERSION = "tinybert_dist.tokens", 2
MANIFEST = "manifest.json"
REBUILD = "Delete the folder and prepare it again."


def write_manifest(
    folder: Path, shards: list[dict[str, Any]], vocab_size: int, header: dict[str, Any]
) -> None:
    """Makes `folder` a dataset; atomic. The shards must be on the disk already."""
    fsync_folder(folder)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "vocab_size": vocab_size,
        "rows": sum(shard["rows"] for shard in shards),
        "tokens": sum(shard["tokens"] for shard in shards),
        "header": header,
        "shards": shards,
    }
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a token folder. Raises UserError when it is missing, damaged or not ours."""
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
        _ = int(manifest["vocab_size"]), {**manifest["header"]}
        for shard in manifest["shards"]:
            _ = PurePosixPath(shard["file"]), shard["bytes"], shard["sha256"], int(shard.get("max_length", 0))
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a readable manifest ({error!r}). {REBUILD}") from error
    return manifest


def write_joined_manifest(folder: str | Path, parts: Sequence[str], header: dict[str, Any]) -> None:
    """Makes one dataset of token folders inside `folder`, in that order; no shard is copied or moved."""
    folder = Path(folder)
    manifests = [read_manifest(folder / part) for part in parts]
    assert manifests and len({manifest["vocab_size"] for manifest in manifests}) == 1
    shards = [
        shard | {"file": f"{part}/{shard['file']}"}
        for part, manifest in zip(parts, manifests, strict=True)
        for shard in manifest["shards"]
    ]
    write_manifest(folder, shards, manifests[0]["vocab_size"], header)
