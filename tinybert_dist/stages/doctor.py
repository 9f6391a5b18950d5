"""doctor: looks for mistakes before anything runs: this machine, a stage's options, or all steps of a recipe.

tinybert-dist doctor                                  # this machine and its environment
tinybert-dist doctor task_distill --flags             # what this stage would stumble over
tinybert-dist doctor recipe.yaml --set output_dir=x   # every step; what earlier ones write is not missing

Exit code 2 when there are errors. --json for scripts. Every stage runs its own part by itself.
"""

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinybert_dist import cli
from tinybert_dist.config import UserError, parse, redact
from tinybert_dist.pipeline.flow import config_class
from tinybert_dist.pipeline.recipe import COMMANDS, Step, read_recipe
from tinybert_dist.preflight.checks import check_stage, is_finished
from tinybert_dist.preflight.earlier import Earlier
from tinybert_dist.preflight.environment import check_environment
from tinybert_dist.preflight.findings import Finding, ok, to_table, worst
from tinybert_dist.preflight.outputs import with_outputs
from tinybert_dist.preflight.subject import Subject


class Part(NamedTuple):
    """Findings under one heading: the machine, a stage, or a step of a recipe."""

    name: str
    findings: list[Finding]
    seconds: float


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: prints what was found, exit code 2 if there is an error among it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in argv
    argv = [argument for argument in argv if argument != "--json"]
    if argv[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    try:
        parts = examine(argv)
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error
    findings = [finding for part in parts for finding in part.findings]
    if as_json:
        print(json.dumps([_plain(part) for part in parts], indent=2, ensure_ascii=False))
    else:
        for part in parts:
            print(f"{part.name} ({part.seconds:.1f} s)\n{to_table(part.findings)}")
        counts = [sum(finding.severity == kind for finding in findings) for kind in ("error", "warning")]
        print("doctor: {} errors, {} warnings".format(*counts))
    if worst(findings) == "error":
        raise SystemExit(2)


def examine(argv: Sequence[str]) -> list[Part]:
    """The findings for a command line of the doctor. Raises UserError for a target that is none."""
    if not argv:
        return [_timed("machine", check_environment)]
    target, rest = argv[0], list(argv[1:])
    stage = target.replace("-", "_")
    if stage in cli.stage_names() and stage not in COMMANDS:
        config = parse(config_class(stage), rest)
        return [_timed(stage, lambda: check_stage(Subject(stage, config, is_launched=False)))]
    if not Path(target).is_file():
        raise UserError(
            f"doctor {target}: neither a stage nor a recipe.{cli.suggest(stage, cli.stage_names())}"
        )
    parser = argparse.ArgumentParser(prog="tinybert-dist doctor recipe.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a variable")
    return examine_steps(read_recipe(target, parser.parse_args(rest).set).steps)


def examine_steps(steps: Sequence[Step]) -> list[Part]:
    """The findings for every step of a recipe; what steps before it have still to write counts as there."""
    earlier = Earlier()
    parts = []
    for step in steps:
        started_at = time.monotonic()
        config = _options(step)
        if isinstance(config, Finding):
            findings = [config]
        elif is_finished(config):
            findings = [ok("finished")]
        else:
            subject = Subject(step.stage, config, earlier, is_launched=False)
            findings = check_stage(subject)
            earlier = with_outputs(earlier, step.name, subject)
        parts.append(Part(f"{step.name}: {step.stage}", findings, time.monotonic() - started_at))
    return parts


def _options(step: Step) -> Any:
    refused = io.StringIO()
    try:
        with contextlib.redirect_stderr(refused):  # argparse prints and exits
            return parse(config_class(step.stage), step.argv)
    except UserError as error:
        return Finding.of(error)._replace(check="options")
    except SystemExit:
        message = refused.getvalue().strip().rpartition("error: ")[2]
        return Finding("error", f"{message}.", f"{step.stage} --help lists the options.", "options")


def _timed(name: str, check: Any) -> Part:
    started_at = time.monotonic()
    findings = check()
    return Part(name, findings, time.monotonic() - started_at)


def _plain(part: Part) -> dict[str, Any]:
    findings = [{key: redact(value) for key, value in found._asdict().items()} for found in part.findings]
    return {"name": part.name, "seconds": round(part.seconds, 2), "findings": findings}


if __name__ == "__main__":
    main()
