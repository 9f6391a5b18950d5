"""What has changed between two records of a step, for people."""

from collections.abc import Mapping
from typing import Any

MAX_REASONS = 5


def reasons_of_change(
    old: Mapping[str, Any], new: Mapping[str, Any], sources: Mapping[str, str]
) -> list[str]:
    """One line per changed part, old and new. sources: steps by the parts that stand for their outputs."""
    changed = [label for label in {**old, **new} if old.get(label) != new.get(label)]
    found = list(dict.fromkeys(_reason(label, old, new, sources) for label in changed))
    more = len(found) - MAX_REASONS
    return found if more <= 0 else [*found[:MAX_REASONS], f"and {more} more"]


def _reason(label: str, old: Mapping[str, Any], new: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    before, now = old.get(label), new.get(label)
    if label in sources:
        return f"after {sources[label]}"
    if _is_file(before) or _is_file(now):
        return f"{label}: {'gone' if now is None else 'new' if before is None else 'another content'}"
    return f"{label}: {_shown(before)} -> {_shown(now)}"


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("file ")


def _shown(value: Any) -> str:
    if value is None:
        return "(default)"
    if isinstance(value, str) and value.startswith("step "):
        return "(of another step)"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
