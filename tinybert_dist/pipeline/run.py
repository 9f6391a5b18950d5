"""Runs the steps of a plan that are due, one after the other."""

import shlex
import sys
import time
from collections.abc import Sequence

from tinybert_dist.config import redact
from tinybert_dist.pipeline.plan import Plan, Planned
from tinybert_dist.pipeline.processes import run_here, run_launched
from tinybert_dist.pipeline.recipe import Step
from tinybert_dist.pipeline.show import banner, renamed_lines, summary

# the stages that train or compute on several processes; the others run in this one
LAUNCHED_STAGES = {
    "augment", "evaluate", "finetune_teacher", "general_distill", "prepare_corpus", "task_distill",
}  # fmt: skip


def run(plan: Plan, launcher: Sequence[str] = ()) -> dict[str, float]:
    """Runs what is due; returns seconds per step. A step that fails ends it with SystemExit."""
    started_at = time.monotonic()
    seconds: dict[str, float] = {}
    for i, planned in enumerate(plan.steps):
        step = planned.step
        if not planned.is_due:
            continue
        banner(
            f"{plan.recipe.name}: {i + 1} of {len(plan.steps)}: {step.name}", time.monotonic() - started_at
        )
        for line in renamed_lines(prepare(planned)):
            print(line)
        command = command_of(step, launcher)
        print("  " + redact(shlex.join(command)), flush=True)
        step_started_at = time.monotonic()
        code = run_launched(command) if _is_launched(step, launcher) else run_here(step)
        seconds[step.name] = time.monotonic() - step_started_at
        missing = planned.outputs.missing()
        if code is None or (not code and missing and missing.endswith(": interrupted")):
            print(f"pipeline: stage {step.name} was interrupted; run the same command to go on")
            return seconds
        if code or missing:
            how = f"failed with exit code {code}" if code else f"ended, but {missing}"
            print(
                f"pipeline: stage {step.name} {how}. "
                "Correct what it says above and run the same command: finished stages are not repeated.",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(code or 1)
        planned.outputs.finish()
    summary(plan, seconds)
    return seconds


def prepare(planned: Planned) -> list[tuple]:
    """Sets aside what other inputs have given, and records what is about to run; returns what was renamed."""
    renamed = planned.outputs.set_aside() if planned.decision.aside else []
    planned.outputs.start(planned.record)
    return renamed


def command_of(step: Step, launcher: Sequence[str] = ()) -> list[str]:
    """The command line that runs `step` by itself."""
    start = list(launcher) if _is_launched(step, launcher) else ["python"]
    return [*start, "-m", f"tinybert_dist.stages.{step.stage}", *step.argv]


def _is_launched(step: Step, launcher: Sequence[str]) -> bool:
    return bool(launcher) and step.stage in LAUNCHED_STAGES
