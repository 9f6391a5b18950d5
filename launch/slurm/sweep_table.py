"""sweep_table.py TASKS_FILE: the best run of each task of a sweep, as TASKS_FILE.md and .json.

A run's result is the outcome.json that it put into its --output_dir by a rename: whole, or not there.
Standard library only. Exit code 1 when a run is not finished yet.
"""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any


def read_runs(tasks_file: Path) -> list[dict[str, Any]]:
    """One dict a line: options, outcome, and score (None: not finished)."""
    runs = []
    for line in tasks_file.read_text(encoding="utf-8").splitlines():
        options = _options(shlex.split(line)[1:])
        folder = Path(options["output_dir"])
        outcome = _read(folder / "outcome.json")
        results = _read(folder / "eval_results.json") if outcome.get("outcome") == "finished" else {}
        task = options.get("task_name") or Path(options.get("data_dir", "")).name
        runs.append(
            {
                "task": task,
                "options": options,
                "outcome": outcome.get("outcome", "not begun"),
                "score": results.get("score"),
                "metric": results.get("selection_metric", ""),
            }
        )
    return runs


def table(runs: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """(lines of Markdown, the best run of each task)"""
    lines = ["| task | metric | best | with | finished |", "|---|---|---:|---|---:|"]
    best = []
    for task in sorted({run["task"] for run in runs}):
        mine = [run for run in runs if run["task"] == task]
        scored = [run for run in mine if run["score"] is not None]
        finished = f"{len(scored)} of {len(mine)}"
        if not scored:
            lines.append(f"| {task} | | | | {finished} |")
            continue
        winner = max(scored, key=lambda run: run["score"])
        best.append(winner)
        varied = [k for k in winner["options"] if len({str(run["options"].get(k)) for run in mine}) > 1]
        settings = ", ".join(f"{k} {winner['options'][k]}" for k in varied if k != "output_dir")
        lines.append(f"| {task} | {winner['metric']} | {winner['score']:.4f} | {settings} | {finished} |")
    return lines, best


def _options(arguments: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument.removeprefix("--").partition("=")
            options[name] = value
        else:
            options[name] = f"{options[name]} {argument}".strip()
    return options


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main() -> int:
    """Prints the table and writes both files."""
    tasks_file = Path(sys.argv[1])
    runs = read_runs(tasks_file)
    lines, best = table(runs)
    missing = [run for run in runs if run["score"] is None]
    lines += [f"\n{run['options']['output_dir']}: {run['outcome']}, no score" for run in missing]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    _write(Path(f"{tasks_file}.md"), text)
    _write(Path(f"{tasks_file}.json"), json.dumps({"best": best, "runs": runs}, indent=1) + "\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
