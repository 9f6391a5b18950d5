"""What a step reads, what it writes, and so which step needs which.

A stage says it with its options: those named as NAMES_INPUT are read, `output_dir` is written. A stage module
may say more:

    VERSION = 2                  # raised when the numbers it produces change (missing: 1)
    UPDATES_IN_PLACE = True      # what other inputs gave is not set aside: it keeps what still fits
    def outputs(config)          # files and folders it writes (missing: output_dir); the last part of a path
                                 # may be a pattern
    def unnamed_inputs(config)   # a dict of what its results depend on that no option names
"""

import dataclasses
import importlib
import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from tinybert_dist.config import StageOptions, parse, to_dict
from tinybert_dist.data.source_files import HUB
from tinybert_dist.data.tasks import TaskOptions
from tinybert_dist.pipeline.contents import Content, contents_of, matches_any
from tinybert_dist.pipeline.recipe import Step
from tinybert_dist.training.options import OPERATIONAL

NAMES_INPUT = re.compile(r"\w+_(model|dir|path|eval|embs|folders?|file)|tokenizer|from_scratch")
# how stages that do not train are run: none of it changes what they compute
OTHER_OPERATIONAL = {"batch_tokens", "device", "share", "prepare_workers", "do_train"}
# what is read of a folder with a model, of one with scores, of a training run, by the end of the option
MODEL_FILES = (
    "config.json", "*.safetensors", "*.bin", "*.index.json", "*.model", "vocab.*", "merges.txt",
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
READ_FILES: dict[str, tuple[str, ...]] = {
    "model": MODEL_FILES,
    "tokenizer": MODEL_FILES,
    "eval": ("*eval_results.json",),
    "run_folders": ("metrics.jsonl",),
}
AUGMENTED = "train_aug*"


class Input(NamedTuple):
    """A path (or name on the hub) a step reads: `only` files of these names, none of those `without`."""

    option: str
    path: str
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


class Declared(NamedTuple):
    """A step as its stage understands it."""

    options: dict[str, Any]
    inputs: list[Input]
    outputs: list[str]
    version: int
    unnamed: dict[str, Any]
    updates_in_place: bool


def config_class(stage: str) -> type[StageOptions]:
    """The options of a stage: what its `run` takes."""
    module = importlib.import_module(f"tinybert_dist.stages.{stage}")
    return get_type_hints(module.run)["config"]


def declare(step: Step) -> Declared:
    """What `step` reads and writes. Raises as config.parse does when its stage cannot take the options."""
    module = importlib.import_module(f"tinybert_dist.stages.{step.stage}")
    config = parse(config_class(step.stage), step.argv)
    defaults = {field.name: _default(field) for field in dataclasses.fields(config)}
    # an option that is new, or left as it is by default, is no change
    chosen = {name: value for name, value in to_dict(config).items() if value != defaults[name]}
    operational = OPERATIONAL | OTHER_OPERATIONAL
    options = {n: v for n, v in chosen.items() if n not in operational and not NAMES_INPUT.fullmatch(n)}
    outputs = module.outputs(config) if hasattr(module, "outputs") else [config.output_dir]
    return Declared(
        options,
        _inputs(config),
        [os.path.abspath(output) for output in outputs],
        getattr(module, "VERSION", 1),
        module.unnamed_inputs(config) if hasattr(module, "unnamed_inputs") else {},
        getattr(module, "UPDATES_IN_PLACE", False),
    )


def sources_of(name: str, declared: Mapping[str, Declared]) -> dict[str, str]:
    """The steps whose outputs step `name` reads or writes into, by what reads them: option and place."""
    found = {}
    mine = declared[name]
    for other, theirs in declared.items():
        for output in theirs.outputs if other != name else []:
            for read in mine.inputs:
                place = below_output(read.path, output) or output_below(output, read)
                if place is not None:
                    found[f"--{read.option} {place}".removesuffix(" .")] = other
            # what lies in another step's folder goes with it
            inside = [path for path in mine.outputs if below_output(path, output) not in {None, "."}]
            if inside and other not in found.values():
                found[f"folder {os.path.basename(output)}"] = other
    return found


def holder_of(name: str, declared: Mapping[str, Declared]) -> str | None:
    """The outermost output of another step in which the first of step `name` lies."""
    outputs = [output for other, theirs in declared.items() if other != name for output in theirs.outputs]
    mine = declared[name].outputs[0]
    return min((o for o in outputs if below_output(mine, o) not in {None, "."}), key=len, default=None)


def contents_read(
    read: Input, outputs: Sequence[str], known: Mapping[str, Content] | None
) -> dict[str, Content] | None:
    """What of `read` is there and no step's output; None for what is no file here, such as a hub name."""
    if read.path.startswith(HUB) or any(below_output(read.path, output) for output in outputs):
        return None
    made = [os.path.basename(output) for output in outputs if output_below(output, read)]
    return contents_of(read.path, read.only, (*read.without, *made), known)


def below_output(path: str, output: str) -> str | None:
    """Where `path` is in what `output` stands for: "." for all of it, None when it is not in there."""
    folder, pattern = os.path.split(output)
    try:
        parts = Path(fixed_part(path)).relative_to(folder).parts
    except ValueError:
        return None
    if not parts or not fnmatch(parts[0], pattern):
        return None
    return "/".join(parts if has_magic(pattern) else parts[1:]) or "."


def output_below(output: str, read: Input) -> str | None:
    """The place of `output` in a folder that is read, None when it is not in there or passed over."""
    try:
        inside = Path(output).relative_to(fixed_part(read.path))
    except ValueError:
        return None
    if any(matches_any(part, read.without) for part in inside.parts):
        return None
    is_read = not read.only or (len(inside.parts) == 1 and matches_any(inside.name, read.only))
    return inside.as_posix() if is_read else None


def fixed_part(path: str) -> str:
    """Absolute; of a pattern the folder it starts from."""
    parts = Path(os.path.abspath(path)).parts
    return str(Path(*parts[: next((i for i, part in enumerate(parts) if has_magic(part)), len(parts))]))


def _inputs(config: StageOptions) -> list[Input]:
    found = []
    for name, value in vars(config).items():
        if not value or name == "output_dir" or not NAMES_INPUT.fullmatch(name):
            continue
        only = next((files for end, files in READ_FILES.items() if name.endswith(end)), ())
        for i, given in enumerate(value if isinstance(value, list) else [value], 1):
            label, path = name if i == 1 else f"{name} {i}", given
            if name == "run_folders":  # FOLDER or NAME=FOLDER
                title, _, path = given.rpartition("=")
                label = f"{name} {title or Path(path).name}"
            if name in {"data_dir", "data_path", "glue_dir"}:
                found.append(_task_folder(name, path, config))
            else:
                found.append(Input(label, path, only))
    return found


def _task_folder(name: str, path: str, config: Any) -> Input:
    # train_aug lies beside the data, and only --aug_train reads it
    inside = Path(path, config.task_name or ".")
    reads_augmented = isinstance(config, TaskOptions) and config.aug_train
    return Input(name, str(inside if inside.is_dir() else path), (), () if reads_augmented else (AUGMENTED,))


def _default(field: dataclasses.Field) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default
