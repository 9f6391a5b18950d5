"""The run folder: whose it is, whether to start, resume or leave it alone, and how the last attempt ended.

config.yaml  run.json (identity)  metrics.jsonl  checkpoints/  outcome.json  + the finished model
"""

from pathlib import Path
from typing import Any

from tinybert_dist.config import UserError, to_dict, to_yaml
from tinybert_dist.files import read_json, write_atomic, write_json
from tinybert_dist.training.options import OPERATIONAL

PREPARED = {"tokens", "pretrained", "teacher_logits"}  # made by the same command before the run itself starts


def refuse_strangers_folder(path: str | Path) -> None:
    """Raises UserError for a folder with files no run made: before hours of preparation, not after them."""
    path = Path(path)
    if (path / "run.json").exists() or not path.is_dir():
        return
    if any(file.name not in PREPARED for file in path.iterdir()):
        raise UserError(
            f"--output_dir {path} is not empty and no run of this program made it; give a new or empty folder"
        )


class RunFolder:
    """One training run's folder.

    identity: everything that decides the numbers (options, data and model fingerprints). The same command on
    its own folder resumes; another identity is refused with both values.
    """

    def __init__(self, path: str | Path, stage: str, config: Any, inputs: dict[str, Any]):
        self.path = Path(path)
        options = {k: v for k, v in to_dict(config).items() if k not in OPERATIONAL and k not in inputs}
        self.identity = {"stage": stage, **options, **inputs}
        self.config = config

    def claim(self) -> None:
        """Makes the folder this run's, or raises UserError if it is another's. Call on one process."""
        owner = self.path / "run.json"
        if owner.exists():
            self._require_same(read_json(owner)["identity"])
        else:
            refuse_strangers_folder(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(owner, {"identity": self.identity})
        write_atomic(self.path / "config.yaml", to_yaml(self.config))

    def _require_same(self, other: dict[str, Any]) -> None:
        keys = [k for k in {**other, **self.identity} if other.get(k) != self.identity.get(k)]
        if keys:
            changes = "; ".join(f"{k}: {other.get(k)!r} there, {self.identity.get(k)!r} now" for k in keys)
            raise UserError(
                f"--output_dir {self.path} holds another run ({changes}). Give another folder, or the same "
                "options to resume."
            )

    def finished(self) -> dict[str, Any] | None:
        """outcome.json of a finished run, else None."""
        path = self.path / "outcome.json"
        outcome = read_json(path) if path.exists() else {}
        return outcome if outcome.get("outcome") == "finished" else None

    def end(self, outcome: str, step: int, reason: str = "", **facts: Any) -> dict[str, Any]:
        """Writes outcome.json: "finished", "interrupted" (resumable) or "failed", with the reason."""
        record = {"outcome": outcome, "step": step, "reason": reason, **facts}
        write_json(self.path / "outcome.json", record)
        return record
