"""New students: named sizes or a config.json, drawn from a seed or cut out of a teacher."""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from tinybert_dist.config import UserError
from tinybert_dist.model_files import load_config, whole_tensors

# arXiv 1909.10351, section 4.2
NAMED_STUDENTS = {
    "tinybert-4l-312": {
        "num_hidden_layers": 4,
        "hidden_size": 312,
        "intermediate_size": 1200,
        "num_attention_heads": 12,
    },
    "tinybert-6l-768": {
        "num_hidden_layers": 6,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
    },
}
FROM_TEACHER = ("vocab_size", "max_position_embeddings", "type_vocab_size", "pad_token_id")


def is_named_student(name: str) -> bool:
    """Whether `name` is one of the built-in sizes."""
    return str(name).lower() in NAMED_STUDENTS


def student_config(name_or_config: str | Path, teacher_config: PreTrainedConfig) -> PreTrainedConfig:
    """Config of a new student; vocabulary, positions, token types and pad id are the teacher's.

    Raises UserError for a name that is neither a built-in size nor a config.json, and for a width that its
    heads do not divide.
    """
    config = _student_config(name_or_config, teacher_config)
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"{name_or_config}: hidden_size {config.hidden_size} is no multiple of "
            f"{config.num_attention_heads} heads. Correct one of the two."
        )
    return config


def _student_config(name_or_config: str | Path, teacher_config: PreTrainedConfig) -> PreTrainedConfig:
    inherited = {key: getattr(teacher_config, key) for key in FROM_TEACHER if hasattr(teacher_config, key)}
    if not is_named_student(str(name_or_config)):
        if not str(name_or_config).endswith(".json"):
            known = ", ".join(NAMED_STUDENTS)
            raise UserError(
                f"new student {str(name_or_config)!r}: give one of {known}, or the path of a config.json."
            )
        return load_config(name_or_config, **inherited)
    sizes = dict(NAMED_STUDENTS[str(name_or_config).lower()])
    if hasattr(teacher_config, "embedding_size"):  # ELECTRA: no factorised embedding in a student
        sizes["embedding_size"] = sizes["hidden_size"]
    config = copy.deepcopy(teacher_config)
    for key, value in sizes.items():
        if not hasattr(config, key):
            raise UserError(
                f"{name_or_config}: {config.model_type} has no {key}. Give a config.json instead."
            )
        setattr(config, key, value)
    config.num_labels, config.problem_type, config.architectures = 2, None, None
    return config


def new_student(
    name_or_config: str | Path,
    *,
    teacher_config: PreTrainedConfig,
    seed: int,
    init_from_teacher_layers: list[int] | None = None,
    teacher: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """Base model in float32, initialised as BERT from `seed` alone (same weights on every rank).

    `init_from_teacher_layers` (each student layer's teacher layer, from 1) copies embeddings, pooler and
    these layers from `teacher`; widths must be equal. Raises UserError if they are not, or a layer does not
    exist.
    """
    config = student_config(name_or_config, teacher_config)
    config.dtype = None
    with whole_tensors(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = AutoModel.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    student.config._name_or_path = ""
    if init_from_teacher_layers is not None:
        assert teacher is not None, "init_from_teacher_layers needs the teacher itself"
        _copy_layers(student, getattr(teacher, teacher.base_model_prefix, teacher), init_from_teacher_layers)
    return student.eval()


def require_copyable(student: PreTrainedConfig, teacher: PreTrainedConfig, layers: list[int]) -> None:
    """Raises UserError unless these layers of the teacher can be a student's."""
    total = teacher.num_hidden_layers
    if len(layers) != student.num_hidden_layers or not all(1 <= layer <= total for layer in layers):
        raise UserError(
            f"--init_from_teacher_layers {layers}: give {student.num_hidden_layers} layers, from "
            f"1 to {total}, one per student layer."
        )
    for key in ("model_type", "hidden_size", "intermediate_size", "num_attention_heads"):
        mine, theirs = getattr(student, key), getattr(teacher, key)
        if mine != theirs:
            raise UserError(
                f"--init_from_teacher_layers: {key} is {mine} here and {theirs} in the teacher; not equal."
            )


def _copy_layers(student: PreTrainedModel, teacher: PreTrainedModel, layers: list[int]) -> None:
    require_copyable(student.config, teacher.config, layers)
    path = _layer_path(teacher)
    state = {name: tensor for name, tensor in teacher.state_dict().items() if not name.startswith(f"{path}.")}
    for i, layer in enumerate(layers):
        own = teacher.get_submodule(f"{path}.{layer - 1}").state_dict()
        state.update({f"{path}.{i}.{name}": tensor for name, tensor in own.items()})
    wanted = student.state_dict()
    missing = student.load_state_dict({name: t for name, t in state.items() if name in wanted}, strict=False)
    assert not [name for name in missing.missing_keys if not name.startswith("pooler.")], missing.missing_keys


def _layer_path(model: PreTrainedModel) -> str:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return name
    raise UserError(f"init_from_teacher_layers: found no list of layers in {type(model).__name__}.")
