"""What a finished training run leaves for its users: the model folder, its card, results and predictions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinybert_dist.config import to_dict
from tinybert_dist.distill.modules import Distiller
from tinybert_dist.models import count_parameters, model_card, save_model
from tinybert_dist.training.options import OPERATIONAL, TrainingOptions
from tinybert_dist.training.scoring import Scorer, write_results
from tinybert_dist.training.strategy import RunAccelerator

WriteOutputs = Callable[[Path, dict[str, Any]], None]


def encoder_outputs(
    options: TrainingOptions,
    stage: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    accelerator: RunAccelerator,
    *,
    teacher: str | None = None,
    base_model: str | None = None,
    distiller: Distiller | None = None,
) -> WriteOutputs:
    """Writes the model folder of an encoder without a task."""

    def write(folder: Path, result: dict[str, Any]) -> None:
        if accelerator.is_main_process:
            card = _card(options, stage, model, result, teacher=teacher, base_model=base_model)
            save_model(model, tokenizer, folder, card=card, projections=projections_of(distiller))

    return write


def classifier_outputs(
    options: TrainingOptions,
    stage: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    scorer: Scorer,
    accelerator: RunAccelerator,
    base_model: str | None,
    *,
    teacher: str | None = None,
    distiller: Distiller | None = None,
) -> WriteOutputs:
    """Writes the model folder of a task's model, and what it scores if its head was trained."""

    def write(folder: Path, result: dict[str, Any]) -> None:
        spec = scorer.task.spec
        logits = scorer.all_logits(model) if "score" in result else {}
        if accelerator.is_main_process:
            card = _card(
                options, stage, model, result, teacher=teacher, base_model=base_model, task=spec.name
            )
            save_model(model, tokenizer, folder, card=card, projections=projections_of(distiller))
            if "score" in result:  # else the head is not trained: step 1 looks at the layers below it
                scorer.write_predictions(folder, logits)
                write_results(folder, spec.name, spec.selection_metric, result)

    return write


def projections_of(distiller: Distiller | None) -> dict[str, Any] | None:
    """Projections under the reference's names, fit_dense.* (shared) or fit_denses.N.*, for the next stage."""
    if distiller is None or not distiller.projections:
        return None
    shared = len(distiller.projections) == 1
    return {
        ("fit_dense." if shared else f"fit_denses.{i}.") + name: tensor
        for i, projection in enumerate(distiller.projections)
        for name, tensor in projection.state_dict().items()
    }


def _card(
    options: TrainingOptions, stage: str, model: PreTrainedModel, result: dict[str, Any], **facts: Any
) -> str:
    config = model.config
    sizes = {
        "parameters": f"{count_parameters(model):,}",
        "layers": config.num_hidden_layers,
        "hidden width": config.hidden_size,
        "attention heads": config.num_attention_heads,
        "vocabulary": config.vocab_size,
    }
    settings = {k: v for k, v in to_dict(options).items() if k not in OPERATIONAL and v is not None}
    scores = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in result.items()}
    return model_card(
        title=Path(options.output_dir).name,
        stage=stage,
        sizes=sizes,
        settings=settings,
        metrics=scores,
        **facts,
    )
