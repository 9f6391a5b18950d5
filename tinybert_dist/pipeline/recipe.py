"""A recipe: the stages of a pipeline and their options, variables filled in.

Beside `name` and `stages` a recipe may have
    base: other.yaml            # the recipe it changes: its own keys win
    cases: {task: {CoLA: {...}}}  # variables that follow from the value of another one; --set wins over them
    slurm: {nodes: 1, env: {}}  # options of sbatch and environment of all jobs; a step's own win
and every other key is a variable.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tinybert_dist import cli
from tinybert_dist.config import PlainWords, UserError, read_yaml

VARIABLE = re.compile(r"\$\{(\w*)\}")
STAGE_KEYS = {"name", "stage", "args", "slurm"}
COMMANDS = {"dashboard", "doctor", "pipeline"}  # of no step


@dataclasses.dataclass(frozen=True)
class Step:
    """One stage of a recipe with its command line, and what its job asks of Slurm."""

    name: str
    stage: str
    argv: list[str]
    slurm: dict[str, Any] = dataclasses.field(default_factory=dict)


class Recipe(NamedTuple):
    """A recipe with every variable filled in; `output_dir` is that variable, where there is one."""

    name: str
    steps: list[Step]
    output_dir: str | None = None


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe. `overrides` are "key=value" for its variables.

    Raises UserError naming the file, the stage and the key.
    """
    content = _read(path)
    stages, slurm = content.pop("stages", None), content.pop("slurm", {})
    name = str(content.pop("name", Path(path).stem))
    if not isinstance(stages, list) or not stages:
        raise UserError(f"{path}: `stages` must be a list of {{name, stage, args}} with at least one entry.")
    # files that belong to a recipe stand beside it
    content.setdefault("recipe_dir", str(Path(path).parent))
    variables = _variables(content, overrides, path)
    steps = [_step(entry, i, variables, slurm, path) for i, entry in enumerate(stages)]
    names = [step.name for step in steps]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: stage name {repeated[0]!r} is used twice. Give each stage its own name.")
    output_dir = variables.get("output_dir")
    return Recipe(
        _fill(name, variables, f"{path}: name"), steps, None if output_dir is None else str(output_dir)
    )


def _read(path: str | Path) -> dict[str, Any]:
    def read(file: Path) -> dict[str, Any]:
        return read_yaml(file, str(file), "recipe", "`key: value` lines and a `stages` list")

    content = read(Path(path))
    base = content.pop("base", None)
    return content if base is None else {**read(Path(path).parent / base), **content}


def _variables(content: dict[str, Any], overrides: Sequence[str], path: str | Path) -> dict[str, Any]:
    cases = content.pop("cases", None) or {}
    given = dict(map(_override, overrides))
    for key, settings in cases.items():
        value = str(given.get(key, content.get(key)))
        if value not in settings:
            raise UserError(f"{path}: {key} {value}: no such case.{cli.suggest(value, settings)}")
        content = {**content, **settings[value]}
    for key in given:
        if key not in content:
            raise UserError(f"--set {key}: {path} has no variable {key!r}.{cli.suggest(key, content)}")
    return _resolve({**content, **given}, path)


def _override(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"--set {text}: write key=value.")
    return key, yaml.load(value, PlainWords)


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
    if isinstance(value, dict):
        return {key: _fill(item, variables, where) for key, item in value.items()}
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> Any:
        if match[1] not in variables:
            raise UserError(f"{where}: ${{{match[1]}}} is not a variable.{cli.suggest(match[1], variables)}")
        return variables[match[1]]

    # alone it may also be a list, or nothing
    if whole := VARIABLE.fullmatch(value):
        return look_up(whole)
    return VARIABLE.sub(lambda match: str(look_up(match)), value)


def _step(entry: Any, index: int, variables: dict[str, Any], slurm: dict[str, Any], path: str | Path) -> Step:
    where = f"{path}: stages[{index}]"
    if not isinstance(entry, dict) or not {"name", "stage"} <= entry.keys():
        raise UserError(f"{where}: expected the keys name, stage and args.")
    if unknown := sorted(entry.keys() - STAGE_KEYS):
        raise UserError(f"{where}: unknown key {unknown[0]!r}.{cli.suggest(unknown[0], STAGE_KEYS)}")
    stage = str(entry["stage"])
    if stage not in cli.stage_names() or stage in COMMANDS:
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
    own = entry.get("slurm") or {}
    resources = {**slurm, **own, "env": {**slurm.get("env", {}), **own.get("env", {})}}
    return Step(str(entry["name"]), stage, argv, _fill(resources, variables, f"{where}.slurm"))
