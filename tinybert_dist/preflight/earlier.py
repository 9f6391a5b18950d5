"""What the steps of a recipe have still to write: nobody can look into it yet."""

from collections.abc import Mapping
from pathlib import Path

from tinybert_dist.preflight.findings import NotYet
from tinybert_dist.preflight.models import Model, Planned
from tinybert_dist.training.run_folder import outcome_in


class Earlier:
    """The outputs of steps that have not finished."""

    def __init__(self) -> None:
        self._steps: dict[Path, str] = {}
        self._augmented: set[Path] = set()
        self._models: dict[Path, Planned] = {}

    def add(self, step: str, folder: str | Path, models: Mapping[Path, Planned]) -> None:
        """`step` will write `folder`, and `models` in or beside it, unless it has."""
        if not _is_finished(Path(folder)):
            self._steps[_absolute(folder)] = step
            self._models |= {_absolute(path): model for path, model in models.items()}

    def add_augmented(self, folder: Path) -> None:
        """A step will write the augmented data of `folder`, or of the folder of this file."""
        self._augmented |= {_absolute(folder), _absolute(folder.parent)}

    def copy(self) -> "Earlier":
        """The same, to be added to."""
        other = Earlier()
        other._steps, other._augmented = dict(self._steps), set(self._augmented)
        other._models = dict(self._models)
        return other

    def step_of(self, path: str | Path) -> str | None:
        """The step that is to write `path`, or the folder it lies in."""
        path = _absolute(path)
        return next((step for folder, step in self._steps.items() if folder in (path, *path.parents)), None)

    def model(self, path: str | Path) -> Model | None:
        """The model that a step is to leave in `path`."""
        return self._models.get(_absolute(path))

    def require_written(self, path: str | Path) -> None:
        """Raises NotYet when a step is still to write `path`."""
        if step := self.step_of(path):
            raise NotYet(f"{path} is written by the step {step}")

    def augments(self, data_dir: str | Path) -> bool:
        """Whether a step is to write the augmented data of a folder."""
        return _absolute(data_dir) in self._augmented


def _is_finished(folder: Path) -> bool:
    if outcome := outcome_in(folder):
        return outcome.get("outcome") == "finished"
    # stages that do not train leave a manifest, results or a report last
    return any((folder / name).is_file() for name in ("manifest.json", "eval_results.json", "report.json"))


def _absolute(path: str | Path) -> Path:
    return Path(path).absolute()
