"""Models in: hub names, transformers folders and the reference's old layouts, with every key accounted for.

No pickle is executed, no code of a model folder is run, and nothing is partitioned while loading.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from tinybert_dist.config import UserError
from tinybert_dist.model_build import LoadReport, build_model
from tinybert_dist.model_card import model_card
from tinybert_dist.model_files import PROJECTION_KEY, load_config, load_projections, read_weights
from tinybert_dist.model_save import save_model
from tinybert_dist.students import NAMED_STUDENTS, is_named_student, new_student, student_config
from tinybert_dist.tokenizer import load_tokenizer, lowers

__all__ = [
    "HEAD_WEIGHTS",
    "NAMED_STUDENTS",
    "LoadReport",
    "as_transformers_head",
    "count_parameters",
    "has_reference_head",
    "is_named_student",
    "label_names",
    "load_classifier",
    "load_config",
    "load_encoder",
    "load_masked_lm",
    "load_projections",
    "load_tokenizer",
    "lowers",
    "model_card",
    "new_student",
    "no_trained_head",
    "require_trained_head",
    "save_model",
    "set_labels",
    "student_config",
    "weights_fingerprint",
]

HEAD_WEIGHTS = ("classifier.weight", "classifier.out_proj.weight")  # of a classifier, by architecture


def load_encoder(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    seed: int = 42,
) -> PreTrainedModel:
    """Base model, with a pooler where the architecture has one; a missing pooler is drawn from `seed`.

    dtype None is float32 whatever the files hold. `model.load_report` tells every missing and unexpected key.
    Raises UserError naming the keys if the backbone is not complete.
    """
    state, files = read_weights(path)
    return build_model(MODEL_MAPPING, load_config(path), state, files, dtype, seed)


def load_masked_lm(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    seed: int = 42,
) -> PreTrainedModel:
    """Model with its masked-LM head; see load_encoder. A head the files lack is listed in
    `load_report.missing`.
    """
    state, files = read_weights(path)
    return build_model(MODEL_FOR_MASKED_LM_MAPPING, load_config(path), state, files, dtype, seed)


def load_classifier(
    path: str | Path,
    *,
    labels: tuple[str, ...] | None = None,
    problem_type: str = "single_label_classification",
    num_labels: int | None = None,
    classifier_head: str = "auto",
    replace_head: bool = False,
    dtype: torch.dtype | None = None,
    seed: int = 42,
) -> PreTrainedModel:
    """Sequence classifier (or regressor: problem_type "regression", one output); see load_encoder.

    `labels` names the outputs. A trained head that has names of its own keeps them and their order: map by
    name. `classifier_head`: "reference" scores classifier(relu(pooled)) without dropout,
    "transformers" its own way; "auto" is "reference" for files with a classifier beside fit_dense(s).
    `replace_head` draws a new head. Raises UserError if a trained head has another number of outputs, or
    other label names, than asked for.
    """
    if classifier_head not in ("auto", "transformers", "reference"):
        raise UserError(f"classifier_head {classifier_head!r}: allowed are auto, transformers, reference.")
    state, files = read_weights(path)
    config = load_config(path)
    if replace_head:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    trained = next((state[name] for name in HEAD_WEIGHTS if name in state), None)
    num_trained = None if trained is None else len(trained)
    set_labels(config, labels, problem_type, num_labels, num_trained, files[0])
    model = build_model(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, config, state, files, dtype, seed)
    from_reference = trained is not None and any(PROJECTION_KEY.match(name) for name in state)
    if classifier_head == "reference" or (classifier_head == "auto" and from_reference):
        if config.model_type != "bert":
            raise UserError(
                f"{path}: the reference's head exists for BERT only, this is {config.model_type}."
            )
        model.dropout = nn.ReLU()  # sits between pooler and classifier; key names stay the same
        model.eval()
    return model


def has_reference_head(model: nn.Module) -> bool:
    """Whether a classifier scores with the reference's relu head."""
    return isinstance(getattr(model, "dropout", None), nn.ReLU)


def require_trained_head(model: PreTrainedModel, path: str | Path) -> None:
    """Raises UserError for a classifier whose files held no head: its scores would be random."""
    report = model.load_report
    assert isinstance(report, LoadReport)
    if missing := [name for name in report.missing if name.startswith("classifier.")]:
        raise no_trained_head(path, missing)


def no_trained_head(path: str | Path, missing: Sequence[str]) -> UserError:
    """What to tell the user of a model whose files lack a classification head."""
    return UserError(
        f"{path} has no trained classification head ({', '.join(missing)} missing). Give a fine-tuned or "
        "distilled model of this task, such as the output of finetune_teacher."
    )


def as_transformers_head(model: PreTrainedModel) -> PreTrainedModel:
    """Puts transformers' dropout back in place of the reference's relu; logits change, weights do not. In
    place.
    """
    if has_reference_head(model):
        config = model.config
        rate = config.classifier_dropout
        model.dropout = nn.Dropout(config.hidden_dropout_prob if rate is None else rate)
        model.dropout.train(model.training)
    return model


def label_names(config: PreTrainedConfig) -> tuple[str, ...] | None:
    """Label names in output order; None if there are only placeholders (LABEL_0 ...)."""
    names = tuple(str(name) for _, name in sorted(config.id2label.items())) if config.id2label else ()
    placeholders = tuple(f"LABEL_{i}" for i in range(len(names)))
    return None if not names or names == placeholders else names


def count_parameters(model: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weights_fingerprint(model: nn.Module) -> str:
    """16 hex digits of names, types, shapes and bytes of a model's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def set_labels(
    config: PreTrainedConfig,
    labels: tuple[str, ...] | None,
    problem_type: Any,
    num_labels: int | None,
    num_trained: int | None,
    file: str | Path,
) -> None:
    """Writes outputs and label names of a task into a classifier's config, in place; see load_classifier.

    num_trained: outputs of the head in `file`, None where it has none. Raises UserError if a trained head has
    another number of outputs, or other label names, than asked for.
    """
    asked = 1 if problem_type == "regression" else len(labels) if labels else num_labels
    if asked is not None and num_trained is not None and num_trained != asked:
        raise UserError(
            f"{file}: its classifier has {num_trained} outputs, the task needs {asked}. Give a model of "
            "this task; a new task starts from the encoder with a new head (finetune_teacher --replace_head)."
        )
    own = label_names(config) if num_trained == config.num_labels else None
    config.problem_type = problem_type
    if problem_type == "regression":
        config.num_labels = 1
        return
    if own and labels and {name.casefold() for name in own} != {name.casefold() for name in labels}:
        raise UserError(
            f"{file}: its labels are {', '.join(own)}, the task's are {', '.join(labels)}. Correct id2label "
            "in its config.json if the names mean the same, or give a model of this task."
        )
    if own:
        return
    if num_trained is not None:
        config.num_labels = num_trained
    elif asked:
        config.num_labels = asked
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: i for i, name in enumerate(labels)}
