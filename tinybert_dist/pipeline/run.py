"""Runs the steps of a recipe in order."""

import contextlib
import io
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tinybert_dist.config import redact
from tinybert_dist.files import read_json
from tinybert_dist.pipeline.processes import run_here, run_launched, stage_main
from tinybert_dist.pipeline.recipe import Recipe, Step

# the stages that train or compute on several processes; the others run in this one
LAUNCHED_STAGES = {"finetune_teacher", "general_distill", "task_distill", "evaluate"}


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
        code = run_launched(command) if _is_launched(step, launcher) else run_here(step)
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


def check_options(step: Step) -> None:
    """SystemExit if the stage cannot take them: before hours of the steps in front of it, not after them."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            stage_main(step)([*step.argv, "--print_config"])
    except SystemExit as stop:
        if stop.code:
            print(f"pipeline: stage {step.name} cannot take these options; nothing was run", file=sys.stderr)
            raise


def _is_launched(step: Step, launcher: Sequence[str]) -> bool:
    return bool(launcher) and step.stage in LAUNCHED_STAGES


def _was_interrupted(step: Step) -> bool:
    # an interrupted stage exits with 0; what follows must not take its half for the whole
    options = dict(zip(step.argv, step.argv[1:], strict=False))
    if "--output_dir" not in options:
        return False
    folder = Path(options["--output_dir"])
    outcomes = [run / "outcome.json" for run in (folder, folder / "pretrained")]
    return any(file.is_file() and read_json(file).get("outcome") == "interrupted" for file in outcomes)


def _banner(title: str, elapsed_s: float) -> None:
    print(f"\n==== {title} {'=' * max(4, 76 - len(title))} {elapsed_s:.0f} s", flush=True)


def _summary(recipe: Recipe, seconds: dict[str, float]) -> None:
    _banner(f"{recipe.name}: finished", sum(seconds.values()))
    for name, taken in seconds.items():
        print(f"  {name:<24}{taken:>8.1f} s", flush=True)
