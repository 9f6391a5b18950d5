"""Which models a model was made from: lineage.json in its folder, of sizes and names alone.

It names the stage, the weights (sha256) and the wandb run, and under `made_from`, by option name, the same of
every model that went in; a model that came without one is known by name.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinybert_dist.config import redact
from tinybert_dist.files import read_json, sha256_of, stamp_of, write_json

LINEAGE = "lineage.json"
WEIGHTS = "model.safetensors"


def write_lineage(
    folder: str | Path, name: str, stage: str, made_from: Mapping[str, Any], wandb: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Writes lineage.json beside the weights of a finished model; returns what it holds.

    made_from: `lineage_of` each model that went in. wandb: project, group and run id, None without a run.
    """
    record = {
        "name": name,
        "stage": stage,
        "weights_sha256": _weights_of(Path(folder)),
        "wandb": dict(wandb) if wandb else None,
        "made_from": dict(made_from),
    }
    write_json(Path(folder) / LINEAGE, record)
    return record


def lineage_of(model: str | Path) -> dict[str, Any]:
    """What is known of a model (folder or hub name): its lineage.json if it belongs to the weights there."""
    folder = Path(model)
    if not (folder / WEIGHTS).is_file():
        return {"name": travelling(str(model))}
    weights = _weights_of(folder)
    try:
        record = read_json(folder / LINEAGE)
    except (OSError, ValueError):
        record = {}
    if isinstance(record, dict) and record.get("weights_sha256") == weights:
        return record
    return {"name": travelling(str(model)), "weights_sha256": weights}


def _weights_of(folder: Path) -> str:
    file = folder / WEIGHTS
    return _sha256(file, stamp_of(file.stat()))


@functools.cache  # a stage asks several times for the same models
def _sha256(file: Path, version: str) -> str:
    return sha256_of(file)


def travelling(value: Any) -> Any:
    """A value without what only this machine knows: paths become their last part, in lists and dicts too."""
    if isinstance(value, Mapping):
        return {key: travelling(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [travelling(item) for item in value]
    if isinstance(value, Path) or (isinstance(value, str) and _is_path(value)):
        return Path(value).name
    return redact(value)


def _is_path(text: str) -> bool:
    if "://" in text or "\n" in text:
        return False
    return text.startswith(("/", "./", "../", "~")) or ("/" in text and Path(text).exists())
