"""Models out: folders that AutoModel, AutoModelForSequenceClassification and pipeline() load with nothing
missing.
"""

import copy
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinybert_dist.config import UserError
from tinybert_dist.files import fsync_folder, write_json
from tinybert_dist.model_files import DROPPED_KEYS, INCOMING, REMOTE_CODE

# says nothing about the tokenizer, but where it once came from
TOKENIZER_NOISE = (
    "name_or_path",
    "is_local",
    "local_files_only",
    "special_tokens_map_file",
    "tokenizer_file",
)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: str | Path,
    *,
    card: str,
    projections: dict[str, torch.Tensor] | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes config.json, model.safetensors, tokenizer files, README.md (`card`) and projections.safetensors.

    Other files in `folder` stay. A crash at any moment leaves the old model, or the new one, or a folder
    without config.json that our loaders and the next save complete; never a config beside the weights of
    another model. `state_dict`: gathered weights, where the strategy holds only parts in `model`. Raises
    UserError for a classifier with the reference's relu head, which a transformers folder cannot express.
    """
    if isinstance(getattr(model, "dropout", None), nn.ReLU):
        raise UserError(
            "this classifier scores with the original's relu head, which transformers would load without the "
            "relu and score wrongly. Convert it first (as_transformers_head) and train or evaluate it that "
            "way."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _publish(folder)
    staged = folder / f"{INCOMING}.partial"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    _write_weights(model, staged, state_dict)
    _write_tokenizer(tokenizer, staged)
    (staged / "README.md").write_text(card, encoding="utf-8")
    if projections:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in projections.items()}
        save_file(tensors, staged / "projections.safetensors", metadata={"format": "pt"})
    for file in staged.iterdir():
        shutil.copymode(staged / "config.json", file)  # safetensors makes files that only their owner reads
        _fsync(file)
    fsync_folder(staged)
    staged.rename(folder / INCOMING)  # from here on the new model is the one that counts
    fsync_folder(folder)
    _publish(folder)


def _publish(folder: Path) -> None:
    # The staged copy stays whole until everything is out, so this can be repeated after a crash. Without
    # config.json nothing loads the folder: it goes first and comes last, so weights and config never mix.
    staged = folder / INCOMING
    if not staged.is_dir():
        return
    (folder / "config.json").unlink(missing_ok=True)
    if not (staged / "projections.safetensors").exists():
        (folder / "projections.safetensors").unlink(missing_ok=True)
    fsync_folder(folder)
    files = sorted(staged.iterdir(), key=lambda file: file.name == "config.json")
    for file in files:
        if file.name == "config.json":
            fsync_folder(folder)
        _put(file, folder / file.name)
    fsync_folder(folder)
    done = folder / f"{INCOMING}.partial"
    shutil.rmtree(done, ignore_errors=True)
    staged.rename(done)
    shutil.rmtree(done)


def _put(file: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)  # no second copy of the weights
    except OSError:
        shutil.copyfile(file, temporary)
        _fsync(temporary)
    os.replace(temporary, target)


def _write_weights(model: PreTrainedModel, staged: Path, state_dict: dict[str, torch.Tensor] | None) -> None:
    # save_pretrained would import deepspeed wherever it is installed, a matter of seconds
    state = model.state_dict() if state_dict is None else state_dict
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    tied = {name for name, source in tied.items() if name in state and source in state}
    weights = {name: t.detach().cpu().contiguous() for name, t in state.items() if name not in tied}
    save_file(weights, staged / "model.safetensors", metadata={"format": "pt"})
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = next(t.dtype for t in weights.values() if t.is_floating_point())
    config.save_pretrained(staged)
    values = json.loads((staged / "config.json").read_text(encoding="utf-8"))
    kept = ("dtype", "transformers_version")
    write_json(
        staged / "config.json",
        {key: value for key, value in values.items() if key in kept or key not in DROPPED_KEYS},
    )


def _write_tokenizer(tokenizer: PreTrainedTokenizerFast, staged: Path) -> None:
    # the length of the last call would otherwise be stored, and cut other people's texts
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(staged)
    file = staged / "tokenizer_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    write_json(
        file,
        {key: value for key, value in values.items() if key not in (*TOKENIZER_NOISE, *REMOTE_CODE)},
    )


def _fsync(file: Path) -> None:
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
