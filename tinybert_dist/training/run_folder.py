"""The run folder: whose it is, whether to start, resume or leave it alone, and how the last attempt ended.

config.yaml  run.json (identity)  metrics.jsonl  checkpoints/  outcome.json  + the finished model
attempt.json  attempt.lock  heartbeats/
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tinybert_dist.config import UserError, to_dict, to_yaml
from tinybert_dist.files import read_json, write_atomic, write_json
from tinybert_dist.training.attempt import LOCK, Attempt, Superseded
from tinybert_dist.training.options import OPERATIONAL

# made by the same command before the run itself starts
PREPARED = {"tokens", "pretrained", "teacher_logits", LOCK}


class Failure(NamedTuple):
    """Which process failed first and why; whether the same command can go on from the newest checkpoint."""

    process: int
    reason: str
    resumable: bool = True


def stage_of_run(stage: str, config: Any) -> str:
    """What run.json calls a stage: the two steps of task distillation are runs of their own kind."""
    if stage != "task_distill":
        return stage
    return "task_distill_prediction" if config.pred_distill else "task_distill_intermediate"


def outcome_in(folder: Path) -> dict[str, Any]:
    """outcome.json of a training run, {} where there is none."""
    path = folder / "outcome.json"
    return read_json(path) if path.is_file() else {}


def refuse_strangers_folder(path: str | Path, stage: str) -> None:
    """Raises UserError for a folder with files no run of this stage made.

    Before hours of preparation, which would also replace what another stage has prepared there.
    """
    path = Path(path)
    if (owner := path / "run.json").exists():
        _require_same(path, {"stage": read_json(owner)["identity"]["stage"]}, {"stage": stage})
        return
    if not path.is_dir():
        return
    if any(file.name not in PREPARED for file in path.iterdir()):
        raise UserError(
            f"--output_dir {path} is not empty and no run of this program made it; give a new or empty folder"
        )


def refuse_other_numbers(path: str | Path, config: Any) -> None:
    """Raises UserError when the run in a folder was made with other numbers among its options.

    What the folder's run is fingerprinted by is not known before the data are read; numbers are.
    """
    owner = Path(path) / "run.json"
    there = read_json(owner)["identity"] if owner.exists() else {}
    now = {k: v for k, v in to_dict(config).items() if k not in OPERATIONAL}
    numbers = {k for k in there.keys() & now.keys() if _is_number(there[k]) and _is_number(now[k])}
    _require_same(Path(path), {k: there[k] for k in numbers}, {k: now[k] for k in numbers})


class RunFolder:
    """One training run's folder.

    identity: everything that decides the numbers (options, data and model fingerprints). The same command on
    its own folder resumes; another identity is refused with both values.
    """

    def __init__(self, path: str | Path, stage: str, config: Any, inputs: dict[str, Any]):
        self.path = Path(path)
        self.heartbeats = self.path / "heartbeats"
        self._first_failure = self.heartbeats / "first_failure"
        self.attempt = Attempt(self.path)
        options = {k: v for k, v in to_dict(config).items() if k not in OPERATIONAL and k not in inputs}
        self.identity = {"stage": stage, **options, **inputs}
        self.config = config

    def claim(self) -> str:
        """Makes the folder this job's until `attempt.release`; returns the attempt's token. Main process.

        Raises UserError when it is another run's, or another job is at work in it.
        """
        owner = self.path / "run.json"
        if owner.exists():
            _require_same(self.path, read_json(owner)["identity"], self.identity)
        else:
            refuse_strangers_folder(self.path, self.identity["stage"])
        self.path.mkdir(parents=True, exist_ok=True)
        self.attempt.lock()
        if owner.exists():
            # perhaps made while this one waited
            _require_same(self.path, read_json(owner)["identity"], self.identity)
        else:
            write_json(owner, {"identity": self.identity})
        write_atomic(self.path / "config.yaml", to_yaml(self.config))
        shutil.rmtree(self.heartbeats, ignore_errors=True)
        return self.attempt.take_over()

    def finished(self) -> dict[str, Any] | None:
        """outcome.json of a finished run, else None."""
        outcome = outcome_in(self.path)
        return outcome if outcome.get("outcome") == "finished" else None

    def end(
        self, outcome: str, step: int, reason: str = "", failure: Failure | None = None, **facts: Any
    ) -> dict[str, Any]:
        """Writes outcome.json: "running", "finished", "interrupted" or "failed", with the reason.

        Raises Superseded, writing nothing, when a newer attempt has the folder.
        """
        self.attempt.require_ours()
        record = {
            "outcome": outcome,
            "resumable": failure.resumable if failure else outcome != "finished",
            "step": step,
            "reason": reason,
            "first_failing_process": failure.process if failure else None,
            **facts,
        }
        write_json(self.path / "outcome.json", record)
        return record

    def fail(self, failure: Failure, step: int) -> None:
        """Records a failure; any process may, and the first one wins: later ones are its consequences."""
        try:
            self.attempt.require_ours()
            os.close(os.open(self._first_failure, os.O_CREAT | os.O_EXCL))
            self.end("failed", step, failure.reason, failure)
        except FileExistsError:
            pass
        except (OSError, Superseded) as error:  # must not hide what it should tell
            print(f"outcome.json was not written: {error}", file=sys.stderr)

    def failure(self) -> Failure | None:
        """What a process of this attempt has recorded."""
        if not self._first_failure.exists():
            return None
        record = read_json(self.path / "outcome.json")
        if record["outcome"] != "failed":
            return None  # it is just being written
        return Failure(record["first_failing_process"], record["reason"], record["resumable"])


def _require_same(path: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    keys = [k for k in {**there, **now} if there.get(k) != now.get(k)]
    if keys:
        changes = "; ".join(f"{k}: {there.get(k)!r} there, {now.get(k)!r} now" for k in keys)
        raise UserError(
            f"--output_dir {path} holds another run ({changes}). Give another folder, or the same "
            "options to resume."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
