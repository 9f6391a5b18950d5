"""tinybert-dist STAGE --flags: one process, one stage. Only the chosen stage is imported."""

import ast
import difflib
import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tinybert_dist import __version__

STAGES_FOLDER = Path(__file__).parent / "stages"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a stage; without one lists them. Exit code 2 for an unknown stage."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in {"-h", "--help", "help"}:
        print(usage())
        return
    if argv[0] == "--version":
        print(__version__)
        return
    stage = argv[0].replace("-", "_")
    if stage not in stage_names():
        print(
            f"error: there is no stage {argv[0]!r}.{suggest(stage, stage_names())}\n\n{usage()}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    # what a stage returns is for callers: as the return value of a console script it would be an exit code
    importlib.import_module(f"tinybert_dist.stages.{stage}").main(argv[1:])


def stage_names() -> list[str]:
    """Every module of tinybert_dist.stages, found without importing any."""
    return sorted(path.stem for path in STAGES_FOLDER.glob("*.py") if not path.stem.startswith("_"))


def usage() -> str:
    """The stages with the first line of their docstrings."""
    lines = ["tinybert-dist STAGE --flags    (STAGE --help lists the flags)", ""]
    for name in stage_names():
        lines.append(f"  {name:<18}{_first_line(name)}")
    return "\n".join(lines)


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or the list of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else f" Known: {', '.join(known) or 'none'}."


def _first_line(stage: str) -> str:
    docstring = (
        ast.get_docstring(ast.parse((STAGES_FOLDER / f"{stage}.py").read_text(encoding="utf-8"))) or ""
    )
    line = docstring.partition("\n")[0]
    return line.removeprefix(f"{stage}:").strip()


if __name__ == "__main__":
    main()
