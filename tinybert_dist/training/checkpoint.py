"""One checkpoint format for every strategy: parameters and Adam moments by name, no pickle, whole or invalid.

    step-00000400/  model.safetensors  optimizer.safetensors  state.json  manifest.json (last: bytes, sha256)

Written to a temporary folder, fsynced, renamed; removed by a rename, too: a name step-N is never half of
something. The newest checkpoint that verifies is resumed from; damaged ones are named and passed over; when
there are checkpoints and none verifies, the run stops instead of starting afresh.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinybert_dist.config import StageFailed, UserError
from tinybert_dist.files import fsync_folder, read_json, sha256_of, write_json

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
MANIFEST = "manifest.json"
NAME = re.compile(r"step-\d{8,}")  # step-00000004.bak is a copy that somebody keeps: neither read nor removed


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
    """The checkpoints of one run folder.

    require_ours: raises when another job has taken the folder over; identity: those of other runs are no use.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        require_ours: Callable[[], None] = lambda: None,
        identity: dict[str, Any] | None = None,
    ):
        self.folder, self.keep, self.identity, self._require_ours = folder, keep, identity, require_ours
        self._whole: set[Path] = set()  # found by this process: an old one is read once, not at every save

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after `step` optimizer steps."""
        return self.folder / f"step-{step:08d}"

    def save(self, parameters: dict[str, Tensor], moments: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Writes the checkpoint of state["step"], verifies it, then prunes. Call on one process.

        Raises StageFailed when it cannot be written, such as on a full disk; the earlier ones stay.
        """
        self._require_ours()
        target = self.path(state["step"])
        if target.exists() and self.problem(target) is None:
            return target  # replayed after a fall-back: the same weights, and never a moment without them
        temporary = self.folder / f".{target.name}.tmp"
        try:
            for remains in self.folder.glob(".step-*"):
                _delete(remains)  # of a process that died
            self._write(temporary, parameters, moments, state)
            self._require_ours()  # the writing takes time
            if os.path.lexists(target):
                _remove(target)  # a damaged one of the same step
            os.rename(temporary, target)
            fsync_folder(self.folder)
            if problem := self.problem(target):
                raise OSError(f"it does not verify right after it was written: {problem}")
            self._prune(target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            needed = sum(t.nbytes for tensors in (parameters, moments) for t in tensors.values())
            free = shutil.disk_usage(self.folder.parent).free
            raise StageFailed(
                f"{target} could not be saved: {error}. It needs {needed:,} bytes, {free:,} are free. The "
                "checkpoints before it are as they were; "
                "make room (or lower --keep_checkpoints), then the same command resumes."
            ) from error
        return target

    def _write(
        self,
        folder: Path,
        parameters: dict[str, Tensor],
        moments: dict[str, Tensor],
        state: dict[str, Any],
    ) -> None:
        folder.mkdir(parents=True)
        save_file(_own_memory(parameters), folder / FILES[0])
        save_file(_own_memory(moments), folder / FILES[1])
        for name in FILES[:2]:
            with open(folder / name, "rb") as file:
                os.fsync(file.fileno())
        write_json(folder / FILES[2], state)
        entries = {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256_of(folder / n)} for n in FILES}
        write_json(folder / MANIFEST, {"format": 1, "files": entries})

    def newest(self, report=print) -> Checkpoint | None:
        """The newest that verifies, None when there is none at all; `report` is told of damaged ones."""
        candidates = self._candidates()
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
            return next(self._problems(folder), None)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            return f"{type(error).__name__}: {error}"

    def _problems(self, folder: Path) -> Iterator[str]:
        for path in (folder, *(folder / name for name in (*FILES, MANIFEST))):
            if path.is_symlink():
                yield f"{path.name} is a link"
        manifest = read_json(folder / MANIFEST)["files"]
        for name in FILES:
            yield from _file_problems(folder / name, manifest[name])
        state = read_json(folder / "state.json")
        if folder.name != self.path(state["step"]).name:
            yield f"it holds step {state['step']}"
        if self.identity is not None and state["identity"] != self.identity:
            yield "another run made it"
        yield from _tensor_problems(folder)
        for step in state["needs"]:
            if step < state["step"] and (problem := self.problem(self.path(step))):
                yield f"its best checkpoint, step {step}: {problem}"

    def _candidates(self) -> list[Path]:
        # newest first
        return sorted((p for p in self.folder.glob("step-*") if NAME.fullmatch(p.name)), reverse=True)

    def _prune(self, saved: Path) -> None:
        # those after the one just saved are damaged: the resumed run passed over them. Others may be damaged,
        # too, and do not count: what is kept can be resumed from
        kept = [saved]
        for folder in self._candidates():
            if folder < saved and len(kept) < self.keep:
                kept += [folder] if folder in self._whole or self.problem(folder) is None else []
        self._whole = set(kept)
        needed = {self.path(step) for folder in kept for step in read_json(folder / "state.json")["needs"]}
        self._require_ours()  # later checkpoints may be a newer attempt's
        for folder in self._candidates():
            if folder not in {*kept, *needed}:
                _remove(folder)


def _remove(folder: Path) -> None:
    doomed = folder.with_name(f".{folder.name}.removed")
    os.rename(folder, doomed)
    _delete(doomed)


def _delete(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def _file_problems(path: Path, entry: dict[str, Any]) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name} is missing"
    elif path.stat().st_size != entry["bytes"]:
        yield f"{path.name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
    elif sha256_of(path) != entry["sha256"]:
        yield f"{path.name} does not match its sha256"


def _tensor_problems(folder: Path) -> Iterator[str]:
    # the manifest may agree with the files and the files still not with one another
    with safe_open(folder / FILES[0], "pt") as model, safe_open(folder / FILES[1], "pt") as optimizer:
        names, moments = set(model.keys()), set(optimizer.keys())
    kinds, trained = ({name.partition(".")[i] for name in moments} for i in (0, 2))
    complete = {f"{kind}.{name}" for kind in kinds for name in trained}
    for file, missing in ((FILES[0], trained - names), (FILES[1], complete - moments)):
        if missing:
            yield f"{file} lacks {min(missing)}"


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # tied weights share memory, which safetensors refuses; each name gets its own copy
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
