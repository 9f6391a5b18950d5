"""What is known of a step's outputs: a record beside them, and the names of older ones set aside.

teacher/                         the output
.teacher.step.json.submitted     written before the step runs: fingerprint, its parts, the job if any
.teacher.step.json               the same, renamed when the step has finished well
teacher.before-1/                what other inputs had given, with .teacher.before-1.step.json
"""

import os
from collections.abc import Sequence
from glob import escape, glob, has_magic
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from tinybert_dist.files import read_json, write_json
from tinybert_dist.pipeline.contents import NEVER, Content, matches_any
from tinybert_dist.training.attempt import LOCK, Attempt
from tinybert_dist.training.run_folder import outcome_in

SUFFIX, SUBMITTED = ".step.json", ".submitted"


class Record(NamedTuple):
    """What a step was run with. `parts`: all that its fingerprint is made of, by name."""

    fingerprint: str
    parts: dict[str, Any]
    files: dict[str, dict[str, Content]]
    job: str | None = None


class Outputs:
    """The files and folders a step writes (the last part of each may be a pattern), and their record."""

    def __init__(self, paths: Sequence[str], holder: str | None = None):
        """`holder`: the output of another step in which they lie. The record then stands beside that one,
        whose stage may refuse a folder with something in it.
        """
        self.paths = list(paths)
        outer = Path(holder or self.paths[0])
        self._name = ".".join(Path(self.paths[0]).relative_to(outer.parent).parts).rstrip("*")
        self._folder = outer.parent
        self.record = self._folder / f".{self._name}{SUFFIX}"
        self.submitted = self._folder / f"{self.record.name}{SUBMITTED}"

    def finished(self) -> Record | None:
        """The record of a step that finished well."""
        return _read(self.record)

    def started(self) -> Record | None:
        """The record of a step that was started or submitted, and has not finished."""
        return _read(self.submitted)

    def start(self, record: Record) -> None:
        """Says what is about to run; a finished record of something else must not outlive it."""
        write_json(self.submitted, record._asdict())
        if (finished := self.finished()) is not None and finished.fingerprint != record.fingerprint:
            self.record.unlink()

    def withdraw(self) -> None:
        """What was to run does not."""
        self.submitted.unlink(missing_ok=True)

    def finish(self) -> None:
        """The step that was started has finished well."""
        os.replace(self.submitted, self.record)

    def there(self) -> list[Path]:
        """What is there of it."""
        return [path for paths in self._found() for path in paths]

    def missing(self) -> str | None:
        """Why the step cannot have finished well, or what is gone since; None when all stands."""
        for given, found in zip(self.paths, self._found(), strict=True):
            if not found:
                return f"{os.path.relpath(given)} is not there"
            for path in found:
                if problem := _incomplete(path):
                    return problem
        return None

    def set_aside(self) -> list[tuple[Path, Path]]:
        """Renames what is there; returns the old and the new names.

        Raises UserError when a job is at work in it.
        """
        there = self.there()
        for folder in there:
            if (folder / LOCK).is_file():
                attempt = Attempt(folder)
                attempt.lock()
                attempt.release()
        n = next(n for n in count(1) if not any(_aside(path, n).exists() for path in there))
        renamed = [(path, _aside(path, n)) for path in there]
        if self.record.exists():
            renamed.append((self.record, self._folder / f".{self._name}.before-{n}{SUFFIX}"))
        for old, new in renamed:
            os.rename(old, new)
        return renamed

    def _found(self) -> list[list[Path]]:
        return [_expand(Path(path)) for path in self.paths]


def put_back(renamed: Sequence[tuple[Path, Path]]) -> None:
    """Undoes set_aside, where nothing new has taken the place."""
    for old, new in renamed:
        if not old.exists():
            os.rename(new, old)


def _expand(path: Path) -> list[Path]:
    if not has_magic(path.name):
        return [path] if path.exists() else []
    found = sorted(glob(os.path.join(escape(str(path.parent)), path.name)))
    return [Path(name) for name in found if not matches_any(os.path.basename(name), NEVER)]


def _incomplete(path: Path) -> str | None:
    shown = os.path.relpath(path)
    if not path.is_dir():
        return None
    if not any(path.iterdir()):
        return f"{shown} is empty"
    for run in (path, path / "pretrained"):
        if record := outcome_in(run):
            if (outcome := record.get("outcome")) != "finished":
                return f"{os.path.relpath(run)}: {outcome}"
            if not any(run.glob("model*.safetensors")):
                return f"{os.path.relpath(run)}: the weights are gone"
    return None


def _aside(path: Path, n: int) -> Path:
    return path.with_name(f"{path.name.rstrip('*')}.before-{n}")


def _read(path: Path) -> Record | None:
    try:
        content = read_json(path)
        files = {
            label: {name: Content(*facts) for name, facts in contents.items()}
            for label, contents in content["files"].items()
        }
        return Record(content["fingerprint"], content["parts"], files, content.get("job"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
