"""What a step leaves for those after it, as far as it is known before it has run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from tinybert_dist.config import UserError
from tinybert_dist.preflight.earlier import Earlier
from tinybert_dist.preflight.findings import NotYet
from tinybert_dist.preflight.models import Planned
from tinybert_dist.preflight.subject import Subject

T = TypeVar("T")


def with_outputs(earlier: Earlier, step: str, subject: Subject) -> Earlier:
    """`earlier`, and what `step` will write."""
    config, earlier = subject.config, earlier.copy()
    if subject.stage == "augment":
        earlier.add_augmented(Path(config.output_dir or config.data_path or config.glue_dir))
    elif config.output_dir:
        earlier.add(step, config.output_dir, dict(_models(step, subject)))
    return earlier


def _models(step: str, subject: "Subject") -> Iterator[tuple[Path, Planned]]:
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
