"""What the steps of a recipe leave for those after them, as far as it is known before any has run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from transformers import PreTrainedTokenizerBase

from tinybert_dist.config import UserError
from tinybert_dist.preflight.findings import NotYet
from tinybert_dist.preflight.models import Model, Planned
from tinybert_dist.training.run_folder import outcome_in

if TYPE_CHECKING:
    from tinybert_dist.preflight.subject import Subject

T = TypeVar("T")


class Earlier:
    """The outputs of steps that have not finished: nobody can look into them yet."""

    def __init__(self) -> None:
        self._steps: dict[Path, str] = {}
        self._augmented: set[Path] = set()
        self.models: dict[Path, Planned] = {}

    def add(self, step: str, subject: "Subject") -> None:
        """What `step` will write, unless it has."""
        config = subject.config
        if subject.stage == "augment":
            source = config.data_path or config.glue_dir
            folder = Path(config.output_dir or source)
            self._augmented |= {_absolute(folder), _absolute(folder.parent)}
            return
        if not config.output_dir or _is_finished(Path(config.output_dir)):
            return
        self._steps[_absolute(config.output_dir)] = step
        self.models |= {_absolute(folder): model for folder, model in _planned(step, subject)}

    def copy(self) -> "Earlier":
        """The same, to be added to."""
        other = Earlier()
        other._steps, other._augmented = dict(self._steps), set(self._augmented)
        other.models = dict(self.models)
        return other

    def step_of(self, path: str | Path) -> str | None:
        """The step that is to write `path`, or the folder it lies in."""
        path = _absolute(path)
        return next((step for folder, step in self._steps.items() if folder in (path, *path.parents)), None)

    def model(self, path: str | Path) -> Model | None:
        """The model that a step is to leave in `path`."""
        return self.models.get(_absolute(path))

    def require_written(self, path: str | Path) -> None:
        """Raises NotYet when a step is still to write `path`."""
        if step := self.step_of(path):
            raise NotYet(f"{path} is written by the step {step}")

    def augments(self, data_dir: str | Path) -> bool:
        """Whether a step is to write the augmented data of a folder."""
        return _absolute(data_dir) in self._augmented


def _planned(step: str, subject: "Subject") -> Iterator[tuple[Path, Planned]]:
    config, folder = subject.config, Path(subject.config.output_dir)

    def known(what: Callable[..., T]) -> Callable[..., T]:
        def ask(*arguments: Any) -> T:
            try:
                return what(*arguments)
            except UserError as error:  # the step's own mistake, told there
                raise NotYet(f"{folder} is known once the step {step} is put right") from error

        return ask

    @known
    def tokenizer(do_lower_case: bool | None, max_length: int | None) -> PreTrainedTokenizerBase:
        return subject.vocabulary.tokenizer(do_lower_case, max_length)

    def plan(path: Path, **more: Any) -> tuple[Path, Planned]:
        return path, Planned(str(path), known(lambda: subject.trained.config), tokenizer, **more)

    labels = known(lambda: subject.task.spec.labels)
    if subject.stage == "general_distill":
        learns_hidden = config.hidden_weight or config.embedding_weight
        width = known(lambda: subject.teacher.config.hidden_size if learns_hidden else None)
        yield plan(folder, make_projection_width=width)
    elif subject.stage == "finetune_teacher":
        yield plan(folder, make_labels=labels)
        yield plan(folder / "pretrained", has_masked_lm_head=True)
    elif subject.stage == "task_distill" and not config.do_eval:
        width = known(lambda: subject.student.projection_width)
        yield plan(folder, make_labels=labels, make_projection_width=width)


def _is_finished(folder: Path) -> bool:
    if outcome := outcome_in(folder):
        return outcome.get("outcome") == "finished"
    # stages that do not train leave a manifest, results or a report last
    return any((folder / name).is_file() for name in ("manifest.json", "eval_results.json", "report.json"))


def _absolute(path: str | Path) -> Path:
    return Path(path).absolute()
