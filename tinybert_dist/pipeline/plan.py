"""Which steps of a recipe have to run, and why: known before any of them has run.

A step's fingerprint is made of its stage and the VERSION of that, the options that change what it computes,
the content of the files it reads from outside, and the fingerprints of the steps whose outputs it reads.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tinybert_dist import cli
from tinybert_dist.config import UserError
from tinybert_dist.files import fingerprint
from tinybert_dist.pipeline.flow import Declared, config_class, contents_read, declare, holder_of, sources_of
from tinybert_dist.pipeline.reasons import reasons_of_change
from tinybert_dist.pipeline.recipe import Recipe, Step
from tinybert_dist.pipeline.records import Content, Outputs, Record

NO_RECORD = "there is no record of how its outputs were made: the stage looks whether they are its own"


class Decision(NamedTuple):
    """What is to be done about a step.

    action: "skip" (unchanged), "queued" (a job does it), "resume" (it was started and goes on), "run".
    aside: what is there comes from other inputs. renews: it will write something new. job: of "queued".
    """

    action: str
    reasons: list[str]
    aside: bool = False
    renews: bool = False
    job: str | None = None


@dataclasses.dataclass(frozen=True)
class Planned:
    """A step, the steps it reads from, its outputs, what is known of it now, and what is to be done."""

    step: Step
    reads: list[str]
    outputs: Outputs
    record: Record
    decision: Decision

    @property
    def is_due(self) -> bool:
        """Whether it has to be started."""
        return self.decision.action in {"run", "resume"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of a recipe in order, each with what is to be done about it."""

    recipe: Recipe
    steps: list[Planned]

    @property
    def due(self) -> list[Planned]:
        """Those that have to be started."""
        return [planned for planned in self.steps if planned.is_due]


def make_plan(recipe: Recipe, is_alive: Callable[[str], bool] = lambda job: False) -> Plan:
    """Looks at the records, the outputs and the files that are read. Changes nothing.

    is_alive: of a job's id, whether it waits or runs. Raises UserError for steps that write the same, read
    what a later one writes, or are at work with other inputs; SystemExit for options a stage cannot take.
    """
    steps = [_in_group(step, recipe.name) for step in recipe.steps]
    declared = {step.name: _declare(step) for step in steps}
    planned: dict[str, Planned] = {}
    for step in steps:
        _refuse_same_outputs(step.name, declared, planned)
        sources = sources_of(step.name, declared)
        for label, other in sources.items():
            if other not in planned:
                raise UserError(
                    f"step {step.name} reads what step {other} writes ({label}), which stands below it. "
                    "Move it up."
                )
        planned[step.name] = _plan_step(step, declared, sources, planned, is_alive)
    return Plan(recipe, list(planned.values()))


def narrow(plan: Plan, only: Sequence[str] = (), start: str | None = None) -> Plan:
    """The steps named in `only`, of those from `start` on. Raises UserError when one needs another first."""
    names = [planned.step.name for planned in plan.steps]
    for name in [*only, *([start] if start else [])]:
        if name not in names:
            raise UserError(f"{plan.recipe.name}: there is no step {name!r}.{cli.suggest(name, names)}")
    kept = set(only or names) & set(names[names.index(start) :] if start else names)
    left_out = {planned.step.name for planned in plan.due} - kept
    for planned in plan.due:
        if planned.step.name in kept and (needed := left_out.intersection(planned.reads)):
            raise UserError(
                f"step {planned.step.name} reads what step {min(needed)} writes, which has to run first: "
                "name it as well."
            )
    return Plan(plan.recipe, [planned for planned in plan.steps if planned.step.name in kept])


def _plan_step(
    step: Step,
    declared: Mapping[str, Declared],
    sources: Mapping[str, str],
    before: Mapping[str, Planned],
    is_alive: Callable[[str], bool],
) -> Planned:
    mine = declared[step.name]
    outputs = Outputs(mine.outputs, holder_of(step.name, declared))
    records = [record for record in (outputs.started(), outputs.finished()) if record]
    known = {label: found for record in reversed(records) for label, found in record.files.items()}
    parts: dict[str, Any] = {"stage": step.stage, "version of the code": mine.version, **mine.unnamed}
    parts |= {f"--{name}": value for name, value in mine.options.items()}
    parts |= {label: f"step {before[name].record.fingerprint}" for label, name in sources.items()}
    files: dict[str, dict[str, Content]] = {}
    all_outputs = [output for other in declared.values() for output in other.outputs]
    for read in mine.inputs:
        label = f"--{read.option}"
        if (contents := contents_read(read, all_outputs, known.get(label))) is not None:
            files[label] = contents
            parts |= {f"{label} {name}": f"file {content.digest}" for name, content in contents.items()}
        elif not any(source.startswith(label) for source in sources):
            # a hub name, or what the stage will miss; no folder of this machine is written down
            parts[label] = os.path.basename(read.path) if os.path.isabs(read.path) else read.path
    record = Record(fingerprint(parts), parts, files)
    renewed = any(before[name].decision.renews for name in sources.values())
    decision = _decide(step, record, outputs, sources, renewed, is_alive)
    if mine.updates_in_place:
        decision = decision._replace(aside=False)
    return Planned(step, list(dict.fromkeys(sources.values())), outputs, record, decision)


def _decide(
    step: Step,
    record: Record,
    outputs: Outputs,
    sources: Mapping[str, str],
    renewed: bool,
    is_alive: Callable[[str], bool],
) -> Decision:
    finished, started = outputs.finished(), outputs.started()
    same = record.fingerprint
    if started and started.job and is_alive(started.job):
        if started.fingerprint == same:
            return Decision("queued", [f"job {started.job}"], job=started.job)
        raise UserError(
            f"step {step.name}: job {started.job}, submitted with other inputs, waits or runs. Wait, or "
            f"scancel {started.job}."
        )
    if finished and finished.fingerprint == same:
        missing = outputs.missing()
        return Decision("run", [missing], renews=True) if missing else Decision("skip", [])
    there = bool(outputs.there())
    if started and started.fingerprint == same:
        return Decision("resume", [f"it was started: {outputs.missing() or 'its end is not recorded'}"])
    if last := started or finished:
        reasons = reasons_of_change(last.parts, record.parts, sources)
        return Decision("run", reasons, aside=there, renews=True)
    if there and not renewed:
        return Decision("run", [NO_RECORD])
    return Decision("run", ["its inputs are made anew" if there else "not run yet"], aside=there, renews=True)


def _in_group(step: Step, group: str) -> Step:
    names = {field.name for field in dataclasses.fields(config_class(step.stage))}
    if "run_group" not in names or "--run_group" in step.argv:
        return step
    return dataclasses.replace(step, argv=[*step.argv, "--run_group", group])


def _declare(step: Step) -> Declared:
    # before hours of the steps in front of it, not after them
    try:
        return declare(step)
    except (UserError, SystemExit):
        print(f"pipeline: stage {step.name} cannot take these options; nothing was run", file=sys.stderr)
        raise


def _refuse_same_outputs(name: str, declared: Mapping[str, Declared], earlier: Mapping[str, Any]) -> None:
    for other in earlier:
        if same := set(declared[name].outputs).intersection(declared[other].outputs):
            raise UserError(
                f"steps {other} and {name} both write {os.path.relpath(min(same))}: give each its own."
            )
