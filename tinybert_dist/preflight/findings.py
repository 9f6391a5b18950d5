"""What checks find: severity, what is wrong, what to change; and the table a person reads."""

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from tinybert_dist.config import UserError, redact

Severity = Literal["ok", "later", "warning", "error"]
ORDER: tuple[Severity, ...] = ("ok", "later", "warning", "error")
FIRST_SENTENCE = re.compile(r"(?<=[.;]) (?=\S)")
WIDTH = 110
T = TypeVar("T")


class NotYet(Exception):
    """What a check needs does not exist yet, and will: the output of an earlier step, a file of the hub."""


class Finding(NamedTuple):
    """One verdict of one check. "later": cannot be told before something else has happened."""

    severity: Severity
    problem: str
    remedy: str = ""
    check: str = ""

    @classmethod
    def of(cls, error: UserError) -> "Finding":
        """The refusal of a stage's own rule; its first sentence is the problem, the rest the remedy."""
        problem, *remedy = FIRST_SENTENCE.split(str(error), maxsplit=1)
        return cls("error", problem, *remedy)

    def __str__(self) -> str:
        return redact(f"{self.problem} {self.remedy}".strip())


Check = Callable[[Any], Iterable[Finding]]


def ok(fact: str) -> Finding:
    """All is well, and this is what was seen."""
    return Finding("ok", fact)


def warning(problem: str, remedy: str) -> Finding:
    """Probably a mistake; nothing is stopped."""
    return Finding("warning", problem, remedy)


def error(problem: str, remedy: str) -> Finding:
    """A mistake: the stage would fail, or what it makes would be worthless."""
    return Finding("error", problem, remedy)


def examine(checks: Mapping[str, Check], subject: Any) -> list[Finding]:
    """The findings of all checks, a mistake that several meet once."""
    found: dict[str, Finding] = {}
    for name, check in checks.items():
        for finding in _run(check, subject):
            found.setdefault(str(finding), finding._replace(check=name))
    return list(found.values())


def _run(check: Check, subject: Any) -> Iterator[Finding]:
    try:
        yield from check(subject)
    except UserError as mistake:
        yield Finding.of(mistake)
    except NotYet as wait:
        yield Finding("later", str(wait))
    except Exception as failure:  # a check that fails itself must not stop the work it is to protect
        yield warning(f"could not be checked ({type(failure).__name__}: {failure}).", "The stage goes on.")


def worst(findings: Iterable[Finding]) -> Severity:
    """The highest severity, "ok" of nothing."""
    return max((finding.severity for finding in findings), key=ORDER.index, default="ok")


def to_table(findings: Iterable[Finding]) -> str:
    """One line per finding, long ones wrapped below one another."""
    findings = list(findings)
    width = max([len(finding.check) for finding in findings], default=0)
    lines = []
    for finding in findings:
        start = f"  {finding.severity:<7}  {finding.check:<{width}}  "
        indent = " " * len(start)
        lines += textwrap.wrap(
            str(finding), WIDTH, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False,
            break_long_words=False,
        )  # fmt: skip
    return "\n".join(lines)


class once:
    """A property computed once; an exception, too, is kept and raised again each time."""

    def __init__(self, compute: Callable[[Any], T]):
        self._compute = compute

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_once_{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if self._name not in vars(instance):
            try:
                vars(instance)[self._name] = (self._compute(instance), None)
            except (UserError, NotYet) as failure:
                vars(instance)[self._name] = (None, failure)
        value, raised = vars(instance)[self._name]
        if raised is not None:
            raise raised.with_traceback(None)
        return value
