"""pipeline: runs the stages of a YAML recipe in order; each resumes, or says that it is finished, by itself.

name: quickstart
output_dir: runs/quickstart          # any other top-level key is a variable: ${output_dir}
stages:
  - name: teacher                    # unique; names the banner and the summary
    stage: finetune_teacher          # tinybert_dist.stages.<stage>
    args: {output_dir: "${output_dir}/teacher", num_train_epochs: 3}

python -m tinybert_dist.stages.pipeline recipe.yaml --set output_dir=/scratch/run --dry_run
"""

import argparse
import contextlib
import gc
import importlib
import io
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from tinybert_dist import cli
from tinybert_dist.config import PlainWords, UserError, read_yaml, redact
from tinybert_dist.files import read_json

VARIABLE = re.compile(r"\$\{(\w*)\}")
STAGE_KEYS = {"name", "stage", "args"}
# the stages that train or compute on several processes; the others run in this one
LAUNCHED_STAGES = {"finetune_teacher", "general_distill", "task_distill", "evaluate"}


class Step(NamedTuple):
    """One stage of a recipe with its command line."""

    name: str
    stage: str
    argv: list[str]


class Recipe(NamedTuple):
    """A recipe with every variable filled in."""

    name: str
    steps: list[Step]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: exit code 2 for the user's mistakes, 1 when a stage failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tinybert_dist.stages.pipeline", description=__doc__.split("\n")[0]
    )
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a variable")
    parser.add_argument("--launcher", default="", help='e.g. "accelerate launch --config_file X.yaml"')
    parser.add_argument("--dry_run", action="store_true", help="print the commands and stop")
    options = parser.parse_args(argv)
    try:
        recipe = read_recipe(options.recipe, options.set)
        for step in recipe.steps:
            _check_options(step)
        run(recipe, launcher=shlex.split(options.launcher), dry_run=options.dry_run)
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error


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


def run(recipe: Recipe, launcher: Sequence[str] = (), dry_run: bool = False) -> dict[str, float]:
    """Runs the steps in order; returns seconds per step. A step that fails ends it with SystemExit."""
    started_at = time.monotonic()
    seconds: dict[str, float] = {}
    for i, step in enumerate(recipe.steps):
        command = command_of(step, launcher)
        _banner(f"{recipe.name}: {i + 1} of {len(recipe.steps)}: {step.name}", time.monotonic() - started_at)
        print("  " + redact(shlex.join(command)), flush=True)
        if dry_run:
            continue
        step_started_at = time.monotonic()
        code = _run_launched(command) if _is_launched(step, launcher) else _run_here(step)
        seconds[step.name] = time.monotonic() - step_started_at
        if code:
            print(
                f"pipeline: stage {step.name} failed with exit code {code}. "
                "Correct what it says above and run the same command: finished stages are not repeated.",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(code)
        if code is None or _was_interrupted(step):
            print(f"pipeline: stage {step.name} was interrupted; run the same command to go on")
            return seconds
    if not dry_run:
        _summary(recipe, seconds)
    return seconds


def command_of(step: Step, launcher: Sequence[str] = ()) -> list[str]:
    """The command line that runs `step` by itself."""
    start = list(launcher) if _is_launched(step, launcher) else ["python"]
    return [*start, "-m", f"tinybert_dist.stages.{step.stage}", *step.argv]


def _check_options(step: Step) -> None:
    # before hours of the stages in front of it, not after them
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _stage_main(step)([*step.argv, "--print_config"])
    except SystemExit as stop:
        if stop.code:
            print(f"pipeline: stage {step.name} cannot take these options; nothing was run", file=sys.stderr)
            raise


def _stage_main(step: Step) -> Callable[[list[str]], Any]:
    return importlib.import_module(f"tinybert_dist.stages.{step.stage}").main


def _is_launched(step: Step, launcher: Sequence[str]) -> bool:
    return bool(launcher) and step.stage in LAUNCHED_STAGES


def _run_launched(command: Sequence[str]) -> int | None:
    """Exit code, None when asked to stop meanwhile: the request is passed on, and its save waited for."""
    processes: list[subprocess.Popen] = []
    workers: list[psutil.Process] = []
    asked = False

    def pass_on(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        for process in processes:
            # a launcher of one process, or one signalled twice, dies before its workers have saved
            with contextlib.suppress(psutil.NoSuchProcess):
                workers.extend(psutil.Process(process.pid).children(recursive=True))
            process.send_signal(signal.SIGTERM)  # of SIGUSR1 a launcher dies

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    previous = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        with subprocess.Popen(command) as process:
            processes.append(process)
            if asked:
                process.send_signal(signal.SIGTERM)
            code = process.wait()
            while any(map(_is_alive, workers)):
                time.sleep(0.1)
    except FileNotFoundError as error:
        raise UserError(
            f"--launcher: the program {command[0]!r} was not found. Activate its environment."
        ) from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return None if asked else code


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _run_here(step: Step) -> int:
    _reset_process()
    try:
        _stage_main(step)(step.argv)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        _reset_process()
    return 0


def _was_interrupted(step: Step) -> bool:
    # an interrupted stage exits with 0; what follows must not take its half for the whole
    options = dict(zip(step.argv, step.argv[1:], strict=False))
    if "--output_dir" not in options:
        return False
    folder = Path(options["--output_dir"])
    outcomes = [run / "outcome.json" for run in (folder, folder / "pretrained")]
    return any(file.is_file() and read_json(file).get("outcome") == "interrupted" for file in outcomes)


def _reset_process() -> None:
    """As a fresh process would start: accelerate keeps its state in singletons, which outlive a stage."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)  # PartialState too
        GradientState._reset_state()
    gc.collect()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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


def _banner(title: str, elapsed_s: float) -> None:
    print(f"\n==== {title} {'=' * max(4, 76 - len(title))} {elapsed_s:.0f} s", flush=True)


def _summary(recipe: Recipe, seconds: dict[str, float]) -> None:
    _banner(f"{recipe.name}: finished", sum(seconds.values()))
    for name, taken in seconds.items():
        print(f"  {name:<24}{taken:>8.1f} s", flush=True)


if __name__ == "__main__":
    main()
