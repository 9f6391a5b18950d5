"""What stage.sbatch asks of a run folder: how it stands, what to do now, and what went wrong first.

Standard library only: it must answer when nothing else can be imported.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

TRY_AGAIN = 75  # exit code: not finished, and the same command goes on
TAIL_LINES = 25
FIRST_MINUTE_S = 60
PIECES = ("part-*/manifest.json", ".*.blocks/*.json")


class Decision(NamedTuple):
    """action: "done", "requeue" or "fail"; code: this job's exit code unless it is requeued."""

    action: str
    code: int
    why: str


def state(folder: str) -> dict[str, Any]:
    """outcome.json of the run and of the pretraining inside it, by folder; {} where there is none.

    "pieces": the finished ones of a stage that keeps such (prepare_corpus, augment), as a number of steps.
    """
    records = {name: _read(Path(folder) / name / "outcome.json") for name in (".", "pretrained")}
    pieces = (path for pattern in PIECES for path in Path(folder).glob(pattern))
    return records | {"pieces": {"step": sum(1 for _ in pieces)}}


def decide(
    before: dict[str, Any],
    after: dict[str, Any],
    *,
    code: int,
    trains: bool = True,
    stopped: bool = False,
    stop_file: bool = False,
    ended: bool = False,
    asked_after: int | None = None,
    restarts: int = 0,
    max_restarts: int = 20,
) -> Decision:
    """What the job does now that its processes are gone.

    before, after: `state` when they started and now; code: the launcher's exit code, which does not tell
    whether a run is finished. stopped: a stage that keeps its pieces was ended on request. ended: Slurm
    itself is ending the job (scancel, time limit, requeue): one that put itself back then could never be
    cancelled. asked_after: seconds after which it was signalled.
    """
    changed = [name for name in (".", "pretrained") if after[name] != before[name]]
    record = after[changed[0]] if changed else after["."] or after["pretrained"]
    if stopped and not code:
        where = f"stopped with {after['pieces']['step']} pieces finished"
    elif not trains or not record or (code and not changed):
        return Decision("fail" if code else "done", code, f"exit code {code}" if code else "finished")
    else:
        where = f"{record['outcome']} at step {record['step']}"
        if record["reason"]:
            where += f" ({record['reason']})"
        # a launcher that dies after the model is written takes nothing from it
        if record is after["."] and record["outcome"] == "finished":
            return Decision("done", 0, where)
        if record["outcome"] != "interrupted":
            hint = "; submitted again it goes on from the newest checkpoint" if record["resumable"] else ""
            return Decision("fail", code or 1, where + hint)
    early = asked_after is not None and asked_after < FIRST_MINUTE_S
    against = {
        "it stays out while the file STOP is there": stop_file,
        "Slurm is ending this job; submitted again it goes on": ended,
        "no progress since the last start": _steps(after) <= _steps(before),
        f"started again {restarts} times already (MAX_RESTARTS)": restarts >= max_restarts,
        "signalled within a minute of the start, again: give --time more, or --signal less": early
        and restarts > 0,
    }
    for reason, holds in against.items():
        if holds:
            return Decision("fail", TRY_AGAIN, f"{where}; {reason}")
    doubt = "; signalled within a minute of the start: is --signal's time as long as --time?" if early else ""
    return Decision("requeue", TRY_AGAIN, f"{where}; back into the queue{doubt}")


def first_error(folder: str, logs: str, processes_per_node: int) -> str:
    """The process that failed first, why, and the end of its log."""
    record = next((r for r in state(folder).values() if r.get("outcome") == "failed"), {}) if folder else {}
    rank = record.get("first_failing_process")
    lines = []
    if rank is not None:
        node, local = divmod(rank, processes_per_node)
        lines.append(f"first error: process {rank} (node {node}): {record['reason']}")
        files = sorted(Path(logs).glob(f"node-{node}/*/attempt_0/{local}/stderr.log"))
    else:
        # what ended first is nearest to the cause
        files = [f for f in Path(logs).glob("node-*/*/attempt_0/*/stderr.log") if _tells_an_error(f)]
        files.sort(key=lambda file: file.stat().st_mtime)
    if files:
        text = files[0].read_text(encoding="utf-8", errors="replace").splitlines()
        lines += [f"the end of {files[0]}:", *(f"  {line}" for line in text[-TAIL_LINES:])]
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _steps(records: dict[str, Any]) -> int:
    return sum(record.get("step", 0) for record in records.values())


def _tells_an_error(path: Path) -> bool:
    text = path.read_text(encoding="utf-8", errors="replace")
    return any(line.startswith(("Traceback", "error:", "failed:")) for line in text.splitlines())


def main(argv: list[str] | None = None) -> None:
    """outcome.py state FOLDER | decide FOLDER --before STATE --code N ... | first_error FOLDER LOGS N"""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("state").add_argument("folder")
    errors = verbs.add_parser("first_error")
    errors.add_argument("folder")
    errors.add_argument("logs")
    errors.add_argument("processes_per_node", type=int)
    decision = verbs.add_parser("decide")
    decision.add_argument("folder")
    decision.add_argument("--before", type=json.loads, required=True)
    decision.add_argument("--code", type=int, required=True)
    decision.add_argument("--trains", action="store_true")
    decision.add_argument("--stopped", action="store_true")
    decision.add_argument("--ended", action="store_true")
    decision.add_argument("--asked-after", type=int)
    decision.add_argument("--restarts", type=int, default=0)
    decision.add_argument("--max-restarts", type=int, default=20)
    options = vars(parser.parse_args(argv))
    verb, folder = options.pop("verb"), options.pop("folder")
    if verb == "state":
        print(json.dumps(state(folder)))
    elif verb == "first_error":
        print(first_error(folder, **options))
    else:
        stop_file = (Path(folder) / "STOP").exists()
        print(*decide(options.pop("before"), state(folder), stop_file=stop_file, **options))


if __name__ == "__main__":
    sys.exit(main())
