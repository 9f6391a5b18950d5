"""A model out of a config and the tensors of a checkpoint, with every key accounted for."""

import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tinybert_dist.config import UserError
from tinybert_dist.model_files import PROJECTION_KEY, whole_tensors

HEAD_PREFIXES: tuple[str, ...] = (
    "cls.",
    "classifier.",
    "lm_head.",
    "qa_outputs.",
    "pooler.",
    "fit_dense",
    "pre_classifier.",
)
HEAD_PREFIXES += ("generator_", "discriminator_", "vocab_", "score.", "position_ids", "sop_classifier.")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every key of a checkpoint."""

    source: str
    missing: tuple[str, ...] = ()
    """keys of heads that the files lack: newly initialised from the seed"""
    unexpected: tuple[str, ...] = ()
    """keys of the files that no part of this kind of model has: look at these"""
    ignored: tuple[str, ...] = ()
    """keys of heads and projections that this use of the model does not need"""

    def __str__(self) -> str:
        lines = [f"loaded {self.source}"]
        for field, what in (
            ("missing", "newly initialised"),
            ("unexpected", "UNEXPECTED"),
            ("ignored", "not needed"),
        ):
            if keys := getattr(self, field):
                lines.append(f"  {what}: {', '.join(keys)}")
        return "\n".join(lines)


def build_model(
    mapping: Any,
    config: PreTrainedConfig,
    state: dict[str, torch.Tensor],
    files: list[Path],
    dtype: torch.dtype | None,
    seed: int,
) -> PreTrainedModel:
    """The model class of `config` in `mapping` with the weights of `state`, and its `load_report`.

    Keys that the files lack are drawn from `seed`; dtype None is float32. `files` are named in errors. Raises
    UserError for an incomplete backbone or shapes that differ from the config.
    """
    if type(config) not in mapping:
        raise UserError(f"{files[0]}: transformers has no such model for model_type {config.model_type!r}.")
    projections = [name for name in state if PROJECTION_KEY.match(name)]
    weights = {name: tensor for name, tensor in state.items() if name not in projections}
    with quiet_loading(), whole_tensors(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, info = mapping[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=dtype or torch.float32,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # reported below, with both shapes
            output_loading_info=True,
        )
    _require_backbone(model, info, files[0])
    strange = sorted(name for name in info["unexpected_keys"] if not _is_head(name, model))
    model.load_report = LoadReport(
        source=", ".join(map(str, files)),
        missing=tuple(sorted(info["missing_keys"])),
        unexpected=tuple(strange),
        ignored=tuple(sorted(projections + list(set(info["unexpected_keys"]) - set(strange)))),
    )
    return model


def _require_backbone(model: PreTrainedModel, info: dict[str, Any], file: Path) -> None:
    if info["mismatched_keys"]:
        shapes = [
            f"{name} {tuple(there)}, config {tuple(here)}" for name, there, here in info["mismatched_keys"]
        ]
        raise UserError(
            f"{file}: shapes differ from config.json: {_some(shapes)}. Use the config of these weights."
        )
    base = "" if model.base_model is model else f"{model.base_model_prefix}."
    missing = sorted(
        name
        for name in info["missing_keys"]
        if name.startswith(base) and not _is_head(name.removeprefix(base), model)
    )
    if missing:
        raise UserError(
            f"{file}: no weights for {len(missing)} backbone keys: {_some(missing)}. Is this the config.json "
            "of these weights, and is the file complete?"
        )


def _is_head(name: str, model: PreTrainedModel) -> bool:
    name = name.removeprefix(f"{model.base_model_prefix}.")
    return name.startswith(HEAD_PREFIXES) or name.endswith("position_ids")


def _some(items: Iterable[str], limit: int = 6) -> str:
    items = list(items)
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


@contextlib.contextmanager
def quiet_loading():
    """Inside, transformers says nothing while it loads."""
    # transformers prints a table of its own and a bar per model; load_report is the one account
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
