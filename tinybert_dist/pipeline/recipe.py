"""A recipe: the stages of a pipeline and their options, variables filled in."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tinybert_dist import cli
from tinybert_dist.config import PlainWords, UserError, read_yaml

VARIABLE = re.compile(r"\$\{(\w*)\}")
STAGE_KEYS = {"name", "stage", "args"}


class Step(NamedTuple):
    """One stage of a recipe with its command line."""

    name: str
    stage: str
    argv: list[str]


class Recipe(NamedTuple):
    """A recipe with every variable filled in."""

    name: str
    steps: list[Step]


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe. `overrides` are "key=value" for its variables.

    Raises UserError naming the file, the stage and the key.
    """
    content = read_yaml(path, str(path), "recipe", "`key: value` lines and a `stages` list")
    stages = content.pop("stages", None)
    name = str(content.pop("name", Path(path).stem))
    if not isinstance(stages, list) or not stages:
        raise UserError(f"{path}: `stages` must be a list of {{name, stage, args}} with at least one entry.")
    # files that belong to a recipe stand beside it
    content.setdefault("recipe_dir", str(Path(path).parent))
    variables = _resolve({**content, **_overrides(overrides, content, path)}, path)
    steps = [_step(entry, i, variables, path) for i, entry in enumerate(stages)]
    names = [step.name for step in steps]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: stage name {repeated[0]!r} is used twice. Give each stage its own name.")
    return Recipe(name, steps)


def _overrides(overrides: Sequence[str], variables: dict[str, Any], path: str | Path) -> dict[str, Any]:
    found = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise UserError(f"--set {override}: write key=value.")
        if key not in variables:
            raise UserError(f"--set {override}: {path} has no variable {key!r}.{cli.suggest(key, variables)}")
        found[key] = yaml.load(value, PlainWords) if value else ""
    return found


def _resolve(variables: dict[str, Any], path: str | Path) -> dict[str, Any]:
    # a variable may use others, in any order; one that uses itself never settles
    for _ in range(len(variables) + 1):
        filled = {key: _fill(value, variables, f"{path}: {key}") for key, value in variables.items()}
        if filled == variables:
            break
        variables = filled
    if circular := [key for key, value in variables.items() if VARIABLE.search(str(value))]:
        raise UserError(f"{path}: the variables {', '.join(circular)} use each other in a circle.")
    return variables


def _fill(value: Any, variables: dict[str, Any], where: str) -> Any:
    if isinstance(value, list):
        return [_fill(item, variables, where) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise UserError(f"{where}: ${{{match[1]}}} is not a variable.{cli.suggest(match[1], variables)}")
        return str(variables[match[1]])

    return VARIABLE.sub(replace, value)


def _step(entry: Any, index: int, variables: dict[str, Any], path: str | Path) -> Step:
    where = f"{path}: stages[{index}]"
    if not isinstance(entry, dict) or not {"name", "stage"} <= entry.keys():
        raise UserError(f"{where}: expected the keys name, stage and args.")
    if unknown := sorted(entry.keys() - STAGE_KEYS):
        raise UserError(f"{where}: unknown key {unknown[0]!r}.{cli.suggest(unknown[0], STAGE_KEYS)}")
    stage = str(entry["stage"])
    if stage not in cli.stage_names() or stage == "pipeline":
        raise UserError(f"{where}: there is no stage {stage!r}.{cli.suggest(stage, cli.stage_names())}")
    arguments = entry.get("args") or {}
    if not isinstance(arguments, dict):
        raise UserError(f"{where}: args must be `key: value` lines.")
    argv: list[str] = []
    for key, raw in arguments.items():
        value = _fill(raw, variables, f"{where}.args.{key}")
        if value is None or value == []:
            continue
        argv += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return Step(str(entry["name"]), stage, argv)
