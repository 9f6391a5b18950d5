"""Numbers of the report card: scores read from finished evaluations, size and speed measured here."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tinybert_dist.config import UserError
from tinybert_dist.files import read_json
from tinybert_dist.models import count_parameters

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin", "step_*_pytorch_model.bin")


def read_evaluation(folder: str | Path) -> dict[str, Any]:
    """eval_results.json of a folder. Raises UserError naming what is missing and how to make it."""
    file = Path(folder) / "eval_results.json"
    try:
        content = read_json(file)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no eval_results.json. Run the evaluate stage on this model, give its output folder."
        ) from error
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}). Run the evaluate stage again.") from error
    if not isinstance(content, dict) or not isinstance(content.get("score"), int | float):
        raise UserError(f"{file}: no number under `score`. Run the evaluate stage again.")
    return content


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


def size_bytes(folder: str | Path) -> int:
    """Bytes of a model's weight files on disk."""
    files = {file for pattern in WEIGHT_FILES for file in Path(folder).glob(pattern) if file.is_file()}
    projections = {file for file in files if "projection" in file.name}
    return sum(file.stat().st_size for file in files - projections)


def describe(model: PreTrainedModel, folder: str | Path) -> dict[str, Any]:
    """Parameters (all, and without the embedding tables), layers, widths and size on disk."""
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
    }


def measure_speed(
    models: Mapping[str, PreTrainedModel], *, length_tokens: int, batch_size: int = 32, repeats: int = 30
) -> dict[str, dict[str, Any]]:
    """Latency of one text and throughput of a batch for each model, in eval mode, on the models' device.

    The models take turns within every repeat: a busy moment of the machine falls on all of them alike.
    Returns {name: {latency_ms: {p50, p95}, throughput_per_s, length_tokens, batch_size}}.
    """
    singles = {name: _forward(model, 1, length_tokens) for name, model in models.items()}
    batches = {name: _forward(model, batch_size, length_tokens) for name, model in models.items()}
    for call in (*singles.values(), *batches.values()):
        for _ in range(3):  # first calls allocate and choose kernels
            call()
    single_s = _take_turns(singles, repeats)
    batch_s = _take_turns(batches, max(3, repeats // 3))
    return {
        name: {
            "latency_ms": {
                "p50": round(1e3 * statistics.median(single_s[name]), 3),
                "p95": round(1e3 * _quantile(single_s[name], 0.95), 3),
            },
            "throughput_per_s": round(batch_size / statistics.median(batch_s[name]), 1),
            "length_tokens": length_tokens,
            "batch_size": batch_size,
        }
        for name in models
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """What the speed was measured on: processor or GPU, threads, versions; nothing that names the machine."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _forward(model: PreTrainedModel, batch_size: int, length_tokens: int) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(5, model.config.vocab_size, (batch_size, length_tokens), generator=generator)
    ids_BS = ids_BS.to(model.device)
    mask_BS = torch.ones_like(ids_BS)
    model.eval()

    def call() -> None:
        with torch.inference_mode():
            model(input_ids=ids_BS, attention_mask=mask_BS)
        if ids_BS.is_cuda:
            torch.cuda.synchronize(ids_BS.device)

    return call


def _take_turns(calls: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started_at = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started_at)
    return seconds


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
