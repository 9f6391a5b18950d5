"""What can be told of a model without loading it: config, tokenizer, shapes of its weights, labels."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from transformers import AutoModel, PreTrainedConfig, PreTrainedTokenizerBase

from tinybert_dist.config import UserError
from tinybert_dist.model_files import (
    HUB_NAME,
    damaged,
    find_weights,
    load_config,
    model_folder,
    read_weights,
    refuse_half_replaced,
    whole_tensors,
)
from tinybert_dist.models import HEAD_WEIGHTS, label_names, load_tokenizer
from tinybert_dist.preflight.findings import NotYet, once
from tinybert_dist.preflight.hub import hub_is_reachable

LFS_POINTER = b"version https://git-lfs"
MASKED_LM_HEADS = ("cls.predictions.", "lm_head.", "predictions.", "head.", "generator_predictions.")
EMBEDDINGS = "word_embeddings.weight"


class Stored:
    """A hub name, a transformers folder, or one of the original; only headers of its weights are read."""

    def __init__(self, name: str | Path):
        self.name = str(name)

    @once
    def folder(self) -> Path:
        """Where it lies here. Raises NotYet for a hub name that is still to be downloaded."""
        if Path(self.name).exists():
            return model_folder(self.name)
        refuse_half_replaced(self.name)
        if not HUB_NAME.match(self.name):
            try:
                return model_folder(self.name)
            except UserError as error:
                raise UserError(f"{error}{_nearest(self.name)}") from error
        if (cached := _cached(self.name)) is not None:
            return cached
        if (problem := hub_is_reachable()) is None:
            if nearest := _nearest(self.name):
                raise UserError(
                    f"{self.name}: no such folder here, but its parent is.{nearest} A hub name that "
                    "begins like a folder of this place must be downloaded beforehand."
                )
            raise NotYet(f"{self.name} is downloaded from the model hub when the stage starts")
        raise UserError(
            f"{self.name}: not a local folder, not in the cache of the model hub, and the hub is not to be "
            f"had ({problem}).{_nearest(self.name)} Correct the path, or where there is a network: "
            f"hf download {self.name}."
        )

    @once
    def config(self) -> PreTrainedConfig:
        """Of config.json."""
        return load_config(self.folder if not self.name.endswith(".json") else self.name)

    def tokenizer(self, do_lower_case: bool | None, max_length: int | None) -> PreTrainedTokenizerBase:
        """As the stages load it."""
        return load_tokenizer(self.folder, do_lower_case=do_lower_case, max_length=max_length)

    @once
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights by name. Raises UserError for a file that is damaged."""
        try:
            path = self.name if Path(self.name).is_file() else self.folder
            files = find_weights(path)
        except UserError:
            if Path(self.name).exists() or hub_is_reachable() is not None:
                raise
            raise NotYet(f"the weights of {self.name} are downloaded when the stage starts") from None
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            shapes |= _shapes_of(file)
        return {name.removeprefix("module."): shape for name, shape in shapes.items()}

    @once
    def weights_file(self) -> Path:
        """The (first) file of the weights, to be named in messages."""
        return find_weights(self.name if Path(self.name).is_file() else self.folder)[0]

    @once
    def num_trained(self) -> int | None:
        """Outputs of its trained classification head; None: it has none."""
        return next((self.shapes[name][0] for name in HEAD_WEIGHTS if name in self.shapes), None)

    @once
    def labels(self) -> tuple[str, ...] | None:
        """Names of the outputs of its trained head, where it has such and they are no placeholders."""
        return label_names(self.config) if self.num_trained == self.config.num_labels else None

    @once
    def has_masked_lm_head(self) -> bool:
        """Whether there are weights of a masked-LM head."""
        return any(name.startswith(MASKED_LM_HEADS) for name in self.shapes)

    @once
    def projection_width(self) -> int | None:
        """Teacher width of the projections beside its weights; None: there are none."""
        own = self.folder / "projections.safetensors"
        shapes = _shapes_of(own) if own.is_file() else self.shapes
        widths = [
            shape[0] for name, shape in shapes.items() if name.startswith("fit_dense") and len(shape) == 2
        ]
        return widths[0] if widths else None

    @once
    def num_parameters(self) -> int:
        """As counted in the files."""
        return sum(int(torch.Size(shape).numel()) for shape in self.shapes.values())


@dataclass
class Planned:
    """A model that is still to be made: a new student, or what an earlier step will leave."""

    name: str
    make_config: Callable[[], PreTrainedConfig]
    make_tokenizer: Callable[[bool | None, int | None], PreTrainedTokenizerBase]
    make_labels: Callable[[], tuple[str, ...] | None] | None = None
    """labels of its head (None or (): one output); no function: no trained head"""
    make_projection_width: Callable[[], int | None] = lambda: None
    has_masked_lm_head: bool = False

    @once
    def config(self) -> PreTrainedConfig:
        """Of the model to come."""
        return self.make_config()

    def tokenizer(self, do_lower_case: bool | None, max_length: int | None) -> PreTrainedTokenizerBase:
        """Of the model to come."""
        return self.make_tokenizer(do_lower_case, max_length)

    @once
    def labels(self) -> tuple[str, ...] | None:
        """See Stored."""
        return (self.make_labels() or None) if self.make_labels else None

    @once
    def num_trained(self) -> int | None:
        """See Stored."""
        if self.make_labels is None:
            return None
        return len(self.make_labels() or ("one output",))

    @once
    def projection_width(self) -> int | None:
        """See Stored."""
        return self.make_projection_width()

    @once
    def num_parameters(self) -> int:
        """Of the encoder; nothing is allocated."""
        with torch.device("meta"), whole_tensors():
            return sum(p.numel() for p in AutoModel.from_config(self.config).parameters())


Model = Stored | Planned


def _cached(name: str) -> Path | None:
    try:
        file = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None


def _nearest(name: str) -> str:
    """The end of a message: a folder beside the one that is not there."""
    parent = Path(name).parent
    if not parent.is_dir() or parent == Path("."):
        parent = Path(".") if len(Path(name).parts) == 1 else parent
    try:
        beside = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(Path(name).name, beside, n=1, cutoff=0.6)
    return f" Did you mean {parent / near[0]}?" if near else ""


def _shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    if file.stat().st_size < 1024 and file.read_bytes().startswith(LFS_POINTER):
        raise UserError(f"{file}: a pointer of Git LFS, not the weights. Fetch them: git lfs pull.")
    if file.suffix != ".safetensors":
        return _shapes_of_pickle(file)
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
    except (SafetensorError, OSError) as error:
        raise damaged(file, error) from error


def _shapes_of_pickle(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # the layout before torch 1.6 cannot be mapped; whatever else it is, reading it tells
        state = None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        state = read_weights(file)[0]
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
