"""Submits the steps of a plan that are due as Slurm jobs, each after the jobs whose outputs it reads."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tinybert_dist
from tinybert_dist import cli
from tinybert_dist.config import UserError, redact
from tinybert_dist.pipeline.flow import below_output
from tinybert_dist.pipeline.plan import Plan
from tinybert_dist.pipeline.recipe import Step
from tinybert_dist.pipeline.records import put_back
from tinybert_dist.pipeline.run import prepare
from tinybert_dist.pipeline.show import renamed_lines, tree

SCRIPT = Path("launch", "slurm", "stage.sbatch")
# what a recipe may ask of sbatch, by its long options; the others are the pipeline's or the script's
OPTIONS = set(
    """
    account acctg-freq bb bbf begin cluster-constraint clusters comment constraint container
    contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot
    distribution error exclude exclusive extra extra-node-info gpu-bind gpu-freq gpus gpus-per-node
    gpus-per-socket gpus-per-task gres gres-flags hint hold licenses mail-type mail-user mcs-label
    mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-requeue nodelist nodes
    ntasks-per-node open-mode output overcommit oversubscribe partition power prefer priority
    profile propagate qos reboot requeue reservation segment signal sockets-per-node spread-job
    switches thread-spec threads-per-core time time-min tmp use-min-nodes wait-all-nodes wckey
    """.split()
)
ENVIRONMENT = "env"


class Job(NamedTuple):
    """A step in the queue."""

    step: str
    job: str
    after: list[str]


def live_jobs(required: bool) -> Callable[[str], bool]:
    """Whether a job of this user waits or runs. Without Slurm none does, or it is `required`: UserError."""
    try:
        return set(_slurm(["squeue", "--noheader", "--me", "--format=%A"]).split()).__contains__
    except UserError:
        if required:
            raise
        return lambda job: False


def sbatch_command(plan: Plan, step: Step, after: Sequence[str] = ()) -> list[str]:
    """The line that submits `step` to run after the jobs `after`. UserError for unknown options."""
    resources, _ = requested(step)
    resources.setdefault("output", str(logs_of(plan) / "%x-%j.out"))
    options = [f"--{name}" if value is True else f"--{name}={value}" for name, value in resources.items()]
    waits = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    name = f"--job-name={plan.recipe.name}.{step.name}"
    command = ["sbatch", "--parsable", name, "--export=ALL", *options, *waits]
    return [*command, str(_home() / SCRIPT), step.stage, *step.argv]


def requested(step: Step) -> tuple[dict[str, Any], dict[str, str]]:
    """(options of sbatch, environment variables) from the recipe's `slurm` lines of a step."""
    options: dict[str, Any] = {}
    environment: dict[str, str] = {}
    for key, value in step.slurm.items():
        name = str(key).replace("_", "-")
        if name == ENVIRONMENT:
            if not isinstance(value, dict):
                raise UserError(f"step {step.name}: slurm: env must be {{NAME: value}}.")
            environment = {name: str(setting) for name, setting in value.items()}
        elif name not in OPTIONS:
            raise UserError(
                f"step {step.name}: slurm: no option {key!r} may be set.{cli.suggest(name, OPTIONS)}"
            )
        elif str(value).lower() == "true":
            options[name] = True
        elif value is not None and str(value).lower() != "false":
            options[name] = value
    return options, environment


def submit(plan: Plan) -> list[Job]:
    """Submits what is due, prints the jobs, returns them.

    When one cannot be submitted, those that were are cancelled, and all is as it was. Raises UserError then.
    """
    for planned in plan.due:  # before the first is submitted
        requested(planned.step)
    if not (_home() / SCRIPT).is_file():
        raise UserError(f"TINYBERT_HOME {_home()}: no {SCRIPT} there. Set TINYBERT_HOME to the checkout.")
    logs_of(plan).mkdir(parents=True, exist_ok=True)
    ids = {p.step.name: p.decision.job for p in plan.steps if p.decision.job}
    jobs: list[Job] = []
    undo: list[tuple] = []
    try:
        for planned in plan.due:
            renamed = prepare(planned)
            undo.append((planned, renamed))
            for line in renamed_lines(renamed):
                print(line)
            after = [job for name in planned.reads if (job := ids.get(name))]
            environment = _environment(plan, planned.step, planned.outputs.record)
            job = _slurm(sbatch_command(plan, planned.step, after), environment).strip().partition(";")[0]
            jobs.append(Job(planned.step.name, job, after))
            ids[planned.step.name] = job
            if planned.outputs.submitted.exists():
                planned.outputs.start(planned.record._replace(job=job))
    except BaseException as error:
        _take_back(jobs, undo)
        if isinstance(error, UserError):
            raise UserError(f"step {planned.step.name} was not submitted. {error}") from error
        raise
    _show_jobs(plan, jobs)
    return jobs


def logs_of(plan: Plan) -> Path:
    """The folder of the jobs' logs: in the recipe's, or beside it where that is a step's own."""
    folder = Path(plan.recipe.output_dir or ".")
    outputs = [path for planned in plan.steps for path in planned.outputs.paths]
    is_own = any(below_output(str(folder), path) for path in outputs)
    return folder.with_name(f"{folder.name}.logs") if is_own else folder / "logs"


def _take_back(jobs: Sequence[Job], undo: Sequence[tuple]) -> None:
    if jobs:
        ids = [
            job.job for job in reversed(jobs)
        ]  # the last first: none starts because the one before is gone
        subprocess.run(["scancel", *ids], check=False)
        print(
            f"pipeline: cancelled what was submitted already: {', '.join(ids)}", file=sys.stderr, flush=True
        )
    for planned, renamed in reversed(undo):
        planned.outputs.withdraw()
        put_back(renamed)


def _environment(plan: Plan, step: Step, record: Path) -> dict[str, str]:
    found = {"TINYBERT_HOME": str(_home()), "TINYBERT_LOGS": str(logs_of(plan))}
    if sys.prefix != sys.base_prefix:
        found["TINYBERT_VENV"] = os.environ.get("TINYBERT_VENV", sys.prefix)
    return {**os.environ, **found, **requested(step)[1], "STEP_RECORD": str(record)}


def _home() -> Path:
    return Path(os.environ.get("TINYBERT_HOME") or Path(tinybert_dist.__file__).parents[1])


def _slurm(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError(
            f"--slurm: there is no {command[0]} here. Use a cluster's login node, or leave --slurm out."
        ) from error
    if done.returncode:
        raise UserError(f"{redact(shlex.join(command[:3]))} ...: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _show_jobs(plan: Plan, jobs: Sequence[Job]) -> None:
    if not jobs:
        return
    by_step = {job.step: job for job in jobs}
    print("\njob         step")
    for branch, name, _ in tree({p.step.name: p.reads for p in plan.steps if p.step.name in by_step}):
        job = by_step[name]
        after = f"   after {', '.join(job.after)}" if job.after else ""
        print(f"{job.job:<12}{branch}{name}{after}")
    ids = [job.job for job in jobs]
    print(
        f"\nlogs:    {os.path.relpath(logs_of(plan))}/{plan.recipe.name}.STEP-JOB.out\n"
        f"watch:   squeue --jobs={','.join(ids)}\n"
        f"cancel:  scancel {' '.join(ids)}\n"
        "A step that fails cancels those after it. The same command again submits what has not finished.",
        flush=True,
    )
