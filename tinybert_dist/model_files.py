"""Files of a model folder: where they are, which weights count, and what old layouts lack. No pickle is
executed.
"""

import contextlib
import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig

from tinybert_dist.config import UserError

# a save publishes its files from here; while the folder exists it holds the complete newer model
# (model_save.py)
INCOMING = ".incoming-model"
PROJECTION_KEY = re.compile(r"^fit_dense(s\.\d+)?\.(weight|bias)$")
HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
STEP_FILE = re.compile(r"^step_(\d+)_pytorch_model\.bin$")
BERT_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
REMOTE_CODE = ["auto_map", "custom_pipelines", "trust_remote_code"]
# remote code, machine paths, and the leftovers of the original configs: none may reach a saved folder
DROPPED_KEYS = (
    REMOTE_CODE
    + (
        "_name_or_path torch_dtype dtype transformers_version attn_implementation _attn_implementation "
        "_attn_implementation_internal pre_trained training structure cell emb_size"
    ).split()
)


def model_folder(path: str | Path) -> Path:
    """The local folder of a hub name, a folder, or a weights file inside one. Raises UserError if there is
    none.
    """
    local = Path(path)
    if local.is_file():
        local = local.parent
    if local.is_dir():
        return local / INCOMING if (local / INCOMING).is_dir() else local
    refuse_half_replaced(local)
    if not HUB_NAME.match(str(path)):
        raise UserError(f"{path}: no such model folder. Give a folder with config.json, or a hub name.")
    return _hub_folder(str(path))


def replaced_folder(folder: Path) -> Path:
    """Where the old content of an export's folder lies until the new one has taken its place."""
    return folder.with_name(f".{folder.name}.replaced")


def refuse_half_replaced(folder: str | Path) -> None:
    """Raises UserError for a folder that is away since an export was killed between its two renames."""
    folder = Path(folder)
    if folder.name and not folder.exists() and replaced_folder(folder).is_dir():
        raise UserError(
            f"{folder}: an export was killed while it replaced this folder. Run the same export again: what "
            f"was there is still in {replaced_folder(folder).name} beside it."
        )


def load_config(path: str | Path, **overrides: Any) -> PreTrainedConfig:
    """config.json of a model, or of a path to that file, with what old configs lack filled in.

    Raises UserError naming the file when it is missing, unparsable, or of an unknown architecture.
    """
    file = Path(path) if str(path).endswith(".json") else model_folder(path) / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}. A model folder needs its config.json.") from error
    except ValueError as error:
        raise UserError(
            f"{file}: not valid JSON ({error}). Restore the config.json of this model."
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a JSON object, got {type(values).__name__}.")
    values = {key: value for key, value in values.items() if key not in DROPPED_KEYS}
    model_type = values.pop("model_type", None) or _guess_model_type(values, file)
    try:
        return AutoConfig.for_model(model_type, **{**values, **overrides})
    except Exception as error:  # the strict config classes raise their own types
        raise UserError(
            f"{file}: {error} (model_type {model_type!r}). Correct the value in this file."
        ) from error


def find_weights(path: str | Path) -> list[Path]:
    """Weight files of a model, in this order of preference: model.safetensors, its shards, pytorch_model.bin,
    its shards, the step_N_pytorch_model.bin of the highest N. A path to one file means that file.

    Raises UserError if there is none.
    """
    if Path(path).is_file():
        return [Path(path)]
    folder = model_folder(path)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return _shards(folder / f"{name}.index.json")
    steps = {
        int(match[1]): file for file in folder.glob("step_*.bin") if (match := STEP_FILE.match(file.name))
    }
    if steps:
        return [steps[max(steps)]]
    raise UserError(
        f"{folder}: no weights. Expected model.safetensors, pytorch_model.bin or step_N_pytorch_model.bin."
    )


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], list[Path]]:
    """(tensors by name, files read) of a model; old names gamma/beta and wrapper prefixes are put right.

    Raises UserError naming the file for a pickle that holds more than tensors, or a damaged file.
    """
    files = find_weights(path)
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state.update(_read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file))
    return {_modern_name(name): tensor for name, tensor in state.items()}, files


def load_projections(path: str | Path) -> dict[str, torch.Tensor] | None:
    """Hidden-state projections of a folder by name (`fit_dense.weight`, `fit_denses.0.weight` ...,
    or what our own projections.safetensors beside the model holds); None if it has none."""
    file = model_folder(path) / "projections.safetensors"
    if file.is_file() and not Path(path).is_file():
        return _read_safetensors(file)
    state, _ = read_weights(path)
    return {name: tensor for name, tensor in state.items() if PROJECTION_KEY.match(name)} or None


def _hub_folder(name: str) -> Path:
    def fetch(*patterns: str) -> Path:
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=["*/*"]))

    try:
        folder = fetch("*.json", "*.txt", "*.model")
        for pattern in ("model*.safetensors", "pytorch_model*.bin"):
            fetch(pattern)
            if any(folder.glob(pattern)):
                break
        return folder
    except (
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        HfHubHTTPError,
        HFValidationError,
        OSError,
    ) as error:
        raise UserError(
            f"{name}: not a local folder, and not to be had from the model hub ({type(error).__name__}). "
            "Check the name; on machines without network download it beforehand and give its folder."
        ) from error


def _guess_model_type(values: dict[str, Any], file: Path) -> str:
    missing = [key for key in BERT_KEYS if key not in values]
    architecture = (values.get("architectures") or ["Bert"])[0]
    if missing:
        raise UserError(
            f"{file}: no model_type, and not a BERT config (no {', '.join(missing)}). Add model_type."
        )
    if not architecture.startswith(("Bert", "Tiny")):
        raise UserError(f"{file}: no model_type, but architecture {architecture}. Add its model_type.")
    return "bert"


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index}: not a weight index ({error}). Download it again.") from error
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index}: names the shard {name!r}, which is not a file in this folder.")
    return [index.parent / name for name in names]


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise damaged(file, error) from error


def damaged(file: Path, error: Exception) -> UserError:
    """What is said of weights that cannot be read."""
    return UserError(f"{file}: damaged ({error}). Copy or download it again.")


def _read_bin(file: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{file}: holds more than tensors, or is damaged; it was not executed. Get the weights as "
            f"model.safetensors, or write this file again with tensors only. ({_first_line(error)})"
        ) from error
    for key in ("model", "state_dict"):  # training checkpoints of other ports nest the weights
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(
            f"{file}: expected a dictionary of tensors, got {type(state).__name__} with other values."
        )
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _modern_name(name: str) -> str:
    name = name.removeprefix("module.")
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


@contextlib.contextmanager
def whole_tensors():
    """Loads inside are never partitioned: after ZeRO-3 is set up, transformers would otherwise split every
    model that from_pretrained builds, a plain teacher included."""
    from transformers.integrations import deepspeed

    saved = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = saved
