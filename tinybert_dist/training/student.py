"""Checks and hand-overs between teacher and student."""

from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tinybert_dist.config import UserError
from tinybert_dist.distill.modules import Distiller
from tinybert_dist.models import is_named_student, load_encoder, load_projections, load_tokenizer, new_student


def check_same_vocabulary(
    tokenizer: PreTrainedTokenizerBase, student: str, teacher: str, do_lower_case: bool | None = None
) -> None:
    """Raises UserError when the student's folder has a vocabulary of its own that is not the teacher's."""
    names = ("vocab.txt", "tokenizer.json", "vocab.json")
    if is_named_student(student) or student.endswith(".json"):
        return
    if Path(student).is_dir() and not any((Path(student) / name).exists() for name in names):
        return  # a folder with weights or a config alone: it speaks the teacher's vocabulary
    own = load_tokenizer(student, do_lower_case=do_lower_case).get_vocab()
    require_equal_vocabularies(own, tokenizer.get_vocab(), student, teacher)


def require_equal_vocabularies(
    own: dict[str, int], other: dict[str, int], student: str, teacher: str
) -> None:
    """Raises UserError with a piece that stands at another place in the student's vocabulary."""
    if own != other:
        word = next(w for w in sorted({**own, **other}) if own.get(w) != other.get(w))
        raise UserError(
            f"vocabularies differ: student {student} has {len(own):,} entries, teacher {teacher} "
            f"{len(other):,}; for example {word!r} is {own.get(word)} and {other.get(word)}. Distillation "
            "needs one tokenizer: start the student from this teacher (general_distill --student_model "
            "tinybert-4l-312)."
        )


def continue_projections(distiller: Distiller, student: str) -> None:
    """Continues with the projections beside a student's weights; a shared one fills every per-layer one."""
    is_new = is_named_student(student) or student.endswith(".json") or is_config_only(Path(student))
    saved = None if is_new or not distiller.projections else load_projections(student)
    if not saved:
        return
    for i, projection in enumerate(distiller.projections):
        prefix = "fit_dense." if "fit_dense.weight" in saved else f"fit_denses.{i}."
        state = {name: saved[prefix + name] for name in ("weight", "bias") if prefix + name in saved}
        fits = all(tensor.shape == projection.get_parameter(n).shape for n, tensor in state.items())
        if len(state) == 2 and fits:
            projection.load_state_dict(state)
        else:
            PartialState().print(
                f"projection {prefix[:-1]} of the student's folder has other widths or is missing: "
                "starting a new one"
            )


def new_or_trained_student(
    name: str, teacher: PreTrainedModel, seed: int, teacher_layers: list[int] | None = None
) -> PreTrainedModel:
    """Base model: a named size or config (file, or folder without weights) made anew, or trained weights.

    teacher_layers: the teacher's layers, counted from 1, that a new student of the same width starts from.
    """
    path = Path(name)
    if is_config_only(path):
        path = path / "config.json"
    if is_named_student(name) or path.suffix == ".json":
        return new_student(
            name if is_named_student(name) else path,
            teacher_config=teacher.config,
            seed=seed,
            init_from_teacher_layers=teacher_layers,
            teacher=teacher,
        )
    if teacher_layers:
        raise UserError(f"--init_from_teacher_layers is for new students; {name} has weights of its own")
    return load_encoder(name, seed=seed)


def is_config_only(path: Path) -> bool:
    """Whether a folder holds a config without weights: a new student."""
    return path.is_dir() and not any(path.glob("*.safetensors")) and not any(path.glob("*.bin"))
