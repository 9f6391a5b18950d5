"""One checkpoint format for every strategy: parameters and Adam moments by name, no pickle, whole or invalid.

    step-00000400/  model.safetensors  optimizer.safetensors  state.json  manifest.json (last: bytes, sha256)

Written to a temporary folder, fsynced, renamed. The newest checkpoint that verifies is resumed from; damaged
ones are named and passed over; when there are checkpoints and none verifies, the run stops instead of
starting afresh.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tinybert_dist.config import UserError
from tinybert_dist.files import fsync_folder, read_json, sha256_of, write_json

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    folder: Path
    state: dict[str, Any]  # step; needs: steps of checkpoints it relies on; what else the loop keeps

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state["step"]

    def parameters(self) -> dict[str, Tensor]:
        """Every parameter and buffer of the trained module by name."""
        return load_file(self.folder / "model.safetensors")

    def moments(self) -> dict[str, Tensor]:
        """Adam's moments as `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, in the parameter's shape."""
        return load_file(self.folder / "optimizer.safetensors")


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after `step` optimizer steps."""
        return self.folder / f"step-{step:08d}"

    def save(self, parameters: dict[str, Tensor], moments: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Writes the checkpoint of state["step"], verifies it, then prunes. Call on one process."""
        target = self.path(state["step"])
        if target.exists() and self.problem(target) is None:
            return target  # replayed after a fall-back: the same weights, and never a moment without them
        temporary = self.folder / f".{target.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(_own_memory(parameters), temporary / FILES[0])
        save_file(_own_memory(moments), temporary / FILES[1])
        write_json(temporary / FILES[2], state)
        for name in FILES[:2]:
            with open(temporary / name, "rb") as file:
                os.fsync(file.fileno())
        entries = {
            n: {"bytes": (temporary / n).stat().st_size, "sha256": sha256_of(temporary / n)} for n in FILES
        }
        write_json(temporary / "manifest.json", {"format": 1, "files": entries})
        if target.exists():
            shutil.rmtree(target)  # a damaged one of the same step
        os.rename(temporary, target)
        fsync_folder(self.folder)
        if problem := self.problem(target):
            raise OSError(f"checkpoint {target.name} does not verify right after it was written: {problem}")
        self._prune(target)
        return target

    def newest(self, report=print) -> Checkpoint | None:
        """The newest that verifies, None when there is none at all; `report` is told of damaged ones."""
        candidates = sorted(self.folder.glob("step-*"), reverse=True) if self.folder.is_dir() else []
        for folder in candidates:
            problem = self.problem(folder)
            if problem is None:
                return Checkpoint(folder, read_json(folder / "state.json"))
            report(f"checkpoint {folder.name} is damaged ({problem}); falling back to the one before")
        if candidates:
            raise UserError(
                f"{self.folder}: {len(candidates)} checkpoints and none is whole. Restore one from a copy, "
                "or give another --output_dir to start afresh."
            )
        return None

    def open(self, step: int) -> Checkpoint:
        """The checkpoint of one step, verified."""
        if problem := self.problem(self.path(step)):
            raise UserError(f"checkpoint {self.path(step)} is damaged: {problem}")
        return Checkpoint(self.path(step), read_json(self.path(step) / "state.json"))

    def problem(self, folder: Path) -> str | None:
        """What is wrong with a checkpoint, or None; it is not whole without the checkpoints it needs."""
        try:
            manifest = read_json(folder / "manifest.json")["files"]
            for name in FILES:
                if problem := _file_problem(folder / name, manifest[name]):
                    return problem
            state = read_json(folder / "state.json")
            if folder.name != self.path(state["step"]).name:
                return f"it holds step {state['step']}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{type(error).__name__}: {error}"
        for step in state["needs"]:
            if step != state["step"] and (problem := self.problem(self.path(step))):
                return f"its best checkpoint, step {step}: {problem}"
        return None

    def _prune(self, saved: Path) -> None:
        # those after the one just saved are damaged: the resumed run passed over them
        needs = {folder: _needs(folder) for folder in sorted(self.folder.glob("step-*")) if folder <= saved}
        readable = [folder for folder, steps in needs.items() if steps is not None]
        kept = set(readable[-self.keep :])
        kept |= {self.path(step) for folder in kept for step in needs[folder] or ()}
        for folder in set(self.folder.glob("step-*")) - kept:
            shutil.rmtree(folder)


def _needs(folder: Path) -> list[int] | None:
    try:
        return read_json(folder / "state.json")["needs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file_problem(path: Path, entry: dict[str, Any]) -> str | None:
    if path.is_symlink() or not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path.name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
    return None if sha256_of(path) == entry["sha256"] else f"{path.name} does not match its sha256"


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # tied weights share memory, which safetensors refuses; each name gets its own copy
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
