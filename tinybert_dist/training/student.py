"""Checks and hand-overs between teacher and student."""

from pathlib import Path

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
    other = tokenizer.get_vocab()
    if own != other:
        word = next(w for w in sorted({**own, **other}) if own.get(w) != other.get(w))
        raise UserError(
            f"vocabularies differ: student {student} has {len(own):,} entries, teacher {teacher} {len(other):,}; for example "
            f"{word!r} is {own.get(word)} and {other.get(word)}. Distillation needs one tokenizer: start the student from "
            "this teacher (general_distill --student_model tinybert-4l-312)."
        )


def continue_projections(distiller: Distiller, student: str) -> None:
    """Continues with the projections beside a student's weights; a shared one fills every per-layer one."""
    saved = load_projections(student) if _has_weights(Path(student)) else None
    if not saved or not distiller.projections:
        return
    for i, projection in enumerate(distiller.projections):
        prefix = "fit_dense." if "fit_dense.weight" in saved else f"fit_denses.{i}."
        state = {name: saved.get(prefix + name) for name in ("weight", "bias")}
        if any(t is None or t.shape != projection.get_parameter(n).shape for n, t in state.items()):
            print(
                f"projection {prefix[:-1]} of the student's folder has other widths or is missing: starting a new one"
            )
            continue
        projection.load_state_dict(state)  # type: ignore[arg-type]


def new_or_trained_student(name: str, teacher: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A base model: a named size or a config (file, or folder without weights) initialised anew, or a folder's weights."""
    path = Path(name)
    if is_named_student(name) or path.suffix == ".json":
        return new_student(name, teacher_config=teacher.config, seed=seed)
    if path.is_dir() and not _has_weights(path):
        return new_student(path / "config.json", teacher_config=teacher.config, seed=seed)
    return load_encoder(name, seed=seed)


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
