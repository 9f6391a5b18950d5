"""Numbers of the report card that are read or counted: scores, curves, parameters, sizes, operations."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tinybert_dist.config import UserError
from tinybert_dist.files import read_json
from tinybert_dist.model_files import refuse_half_replaced
from tinybert_dist.model_flops import classifier_flops
from tinybert_dist.models import count_parameters

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin", "step_*_pytorch_model.bin")


def read_evaluation(folder: str | Path) -> dict[str, Any]:
    """eval_results.json of a folder. Raises UserError naming what is missing and how to make it."""
    remedy = "Run the evaluate stage on this model, give its output folder."
    content = _read(Path(folder) / "eval_results.json", remedy)
    if not isinstance(content, dict) or not isinstance(content.get("score"), int | float):
        raise UserError(f"{folder}/eval_results.json: no number under `score`. {remedy}")
    return content


def read_export(folder: str | Path) -> dict[str, Any]:
    """export.json of a folder. Raises UserError naming what is missing and how to make it."""
    return _read(Path(folder) / "export.json", "Give the output folder of the export stage.")


def read_curve(folder: str | Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl in step order; the keys of a step that was written twice (after a resume) merge.

    A last line cut off by a crash is left out; any other broken line raises UserError with its number.
    """
    file = Path(folder) / "metrics.jsonl"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no metrics.jsonl. Give the output folder of a training stage.") from error
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.setdefault(int(row["step"]), {}).update(row)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(f"{file}:{number}: not a metrics row ({error}). Remove this line.") from error
    return [rows[step] for step in sorted(rows)]


def over_seeds(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Score and metrics of models that differ in their seed: means, sample standard deviations, and each.

    Of one model the deviations are None. A metric counts where all of them have it.
    """
    scores = [float(evaluation["score"]) for evaluation in evaluations]
    splits: dict[str, dict[str, float]] = {}
    deviations: dict[str, dict[str, float | None]] = {}
    for split, metrics in evaluations[0].get("splits", {}).items():
        for metric in metrics:
            values = [e.get("splits", {}).get(split, {}).get(metric) for e in evaluations]
            if all(isinstance(value, int | float) for value in values):
                splits.setdefault(split, {})[metric] = statistics.fmean(values)
                deviations.setdefault(split, {})[metric] = deviation(values)
    return {
        "score": statistics.fmean(scores),
        "score_std": deviation(scores),
        "scores": scores,
        "seeds": len(scores),
        "splits": splits,
        "splits_std": deviations,
    }


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def size_bytes(folder: str | Path) -> int:
    """Bytes of a model's weight files on disk."""
    files = {file for pattern in WEIGHT_FILES for file in Path(folder).glob(pattern) if file.is_file()}
    projections = {file for file in files if "projection" in file.name}
    return sum(file.stat().st_size for file in files - projections)


def describe(model: PreTrainedModel, folder: str | Path, lengths: Sequence[int]) -> dict[str, Any]:
    """Parameters (all, and without the embedding tables), layers, widths, size on disk, FLOPs per text."""
    parameters = count_parameters(model)
    tables = model.base_model.get_submodule("embeddings") if hasattr(model.base_model, "embeddings") else None
    return {
        "parameters": parameters,
        "encoder_parameters": parameters - (count_parameters(tables) if tables is not None else 0),
        "layers": model.config.num_hidden_layers,
        "hidden_size": model.config.hidden_size,
        "heads": model.config.num_attention_heads,
        "vocab_size": model.config.vocab_size,
        "size_mb": round(size_bytes(folder) / 1e6, 3),
        "flops_per_text": {str(length): classifier_flops(model.config, length) for length in lengths},
    }


def _read(file: Path, remedy: str) -> Any:
    try:
        return read_json(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        refuse_half_replaced(file.parent)
        raise UserError(f"{file.parent}: no {file.name}. {remedy}") from error
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}). {remedy}") from error
