"""What a person sees of a plan: the tree of steps, what becomes of each and why."""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tinybert_dist.config import redact
from tinybert_dist.pipeline.plan import Plan
from tinybert_dist.pipeline.recipe import Step

WORDS = {"skip": "unchanged", "queued": "in the queue", "resume": "resume", "run": "run"}


def show_plan(plan: Plan, command_of: Callable[[Step], Sequence[str]] | None = None) -> None:
    """Prints the tree, what becomes of each step and why; with `command_of` the commands, too."""
    print(f"{plan.recipe.name}: {len(plan.due)} of {len(plan.steps)} steps to run")
    rows = list(tree({planned.step.name: planned.reads for planned in plan.steps}))
    width = max(len(branch) + len(name) for branch, name, _ in rows) + 2
    by_name = {planned.step.name: planned for planned in plan.steps}
    for branch, name, others in rows:
        planned = by_name[name]
        reasons = "; ".join(planned.decision.reasons)
        also = f"   (also reads {', '.join(others)})" if others else ""
        line = f"  {branch + name:<{width}}{WORDS[planned.decision.action]:<14}{reasons}{also}"
        print(redact(line.rstrip()))
        margin = " " * (len(branch) + 6)
        if planned.decision.aside:
            there = ", ".join(os.path.relpath(path) for path in planned.outputs.there())
            print(f"{margin}what other inputs gave is set aside: {there} -> .before-N")
        if command_of and planned.is_due:
            print(margin + redact(shlex.join(command_of(planned.step))))


def tree(reads: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, list[str]]]:
    """(branches in front, step, what else it reads) from the top, each step under the deepest it reads from.

    reads: by step, in order; those that are no steps here are left out.
    """
    parents: dict[str, str | None] = {}
    depths: dict[str, int] = {}
    for name, sources in reads.items():
        known = [source for source in sources if source in depths]
        parents[name] = max(known, key=depths.__getitem__, default=None)
        depths[name] = 1 + max((depths[source] for source in known), default=-1)

    def above(name: str | None) -> Iterator[str]:
        while name is not None:
            yield name
            name = parents[name]

    def below(parent: str | None, branch: str) -> Iterator[tuple[str, str, list[str]]]:
        children = [name for name in reads if parents[name] == parent]
        for name in children:
            is_last = name == children[-1]
            front = "" if parent is None else branch + ("`- " if is_last else "|- ")
            line = set(above(name))
            yield front, name, [source for source in reads[name] if source in depths and source not in line]
            yield from below(name, "" if parent is None else branch + ("   " if is_last else "|  "))

    yield from below(None, "")


def renamed_lines(renamed: Iterable[tuple[Path, Path]]) -> list[str]:
    """One line per file or folder that was set aside; records go with them unnamed."""
    pairs = [(old, new) for old, new in renamed if not old.name.startswith(".")]
    return [f"  set aside: {os.path.relpath(old)} -> {os.path.relpath(new)}" for old, new in pairs]


def banner(title: str, elapsed_s: float) -> None:
    """The line in front of a step."""
    print(f"\n==== {title} {'=' * max(4, 76 - len(title))} {elapsed_s:.0f} s", flush=True)


def summary(plan: Plan, seconds: Mapping[str, float]) -> None:
    """Seconds per step, at the end."""
    banner(f"{plan.recipe.name}: finished", sum(seconds.values()))
    for planned in plan.steps:
        name = planned.step.name
        print(f"  {name:<24}" + (f"{seconds[name]:>8.1f} s" if name in seconds else "unchanged"), flush=True)
