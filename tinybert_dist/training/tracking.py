"""What a run leaves for the reader: metrics.jsonl (always) and one wandb run, both written by the main
process alone.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinybert_dist.config import UserError, redact
from tinybert_dist.files import write_atomic

WANDB_MODES = ("auto", "online", "offline", "disabled")
# wandb's step counter cannot be set back on resume, so charts are drawn over a step of our own
STEP_KEY = "step"
STEPPED = ("loss/*", "eval/*", "throughput/*", "learning_rate", "grad_norm", "epoch")
INIT_TIMEOUT_S = 30
logger = logging.getLogger(__name__)


class Tracker:
    """Appends rows to metrics.jsonl and to one wandb run; does nothing unless `is_main`.

    `run_id` None starts a new wandb run; keep the `run_id` property in the checkpoint and pass it back to
    continue that run. `resume_step`: rows of metrics.jsonl after this step are dropped, so a replayed step
    has one row. `wandb_mode` "auto" is online with an API key, else offline; WANDB_MODE wins over "auto". An
    online start that fails falls back to offline with a warning. Raises UserError for an unknown mode or a
    metrics.jsonl that is not ours.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        is_main: bool,
        stage: str,
        config: Mapping[str, Any],
        wandb_mode: str = "auto",
        project: str | None = None,
        group: str | None = None,
        run_id: str | None = None,
        resume_step: int = 0,
    ):
        self._run: Any = None
        self._file: Any = None
        self._run_id = run_id
        self._step = resume_step
        if not is_main:
            return
        mode = resolve_wandb_mode(wandb_mode)
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        keep_rows_until(folder / "metrics.jsonl", resume_step)
        self._file = open(folder / "metrics.jsonl", "a", encoding="utf-8", buffering=1)
        if mode != "disabled":
            self._run = _start_run(folder, mode, stage, config, project, group, run_id)
            self._run_id = self._run.id

    @property
    def run_id(self) -> str | None:
        """Id of the wandb run; the same after a resume. None where wandb is disabled or on other ranks."""
        return self._run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row of numbers for optimizer step `step`. Steps must not go back within a run."""
        if self._file is None:
            return
        self._step = step
        row = {STEP_KEY: step, **{key: _plain(value) for key, value in values.items()}}
        # JSON has no NaN: null keeps the file readable by every parser
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        if self._run is not None:
            self._run.log(row, step=step)

    def log_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table in the wandb run, at the last logged step (a step of its own would make wandb drop the
        next).
        """
        if self._run is not None:
            import wandb

            self._run.log(
                {name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])}, step=self._step
            )

    def log_image(self, path: str | Path) -> None:
        """A picture file (PNG curves) in the wandb run, named after the file."""
        if self._run is not None:
            import wandb

            self._run.log({Path(path).stem: wandb.Image(str(path))}, step=self._step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final figures of the run, shown in wandb's table of runs."""
        if self._run is not None:
            self._run.summary.update({key: _plain(value) for key, value in values.items()})

    def finish(self, exit_code: int = 0) -> None:
        """Closes both; may be called twice. Call it before an exit on a signal: wandb buffers seconds."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._run is not None:
            import wandb

            self._run.finish(exit_code=exit_code)
            # finish() returns up to 30 ms before the service has written the file (seen: 7 bytes); this waits
            wandb.teardown(exit_code=exit_code)
            self._run = None


def resolve_wandb_mode(asked: str) -> str:
    """online, offline or disabled. Raises UserError for an unknown value of the option or of WANDB_MODE."""
    if asked not in WANDB_MODES:
        raise UserError(f"wandb mode {asked!r}: allowed are {', '.join(WANDB_MODES)}.")
    if asked != "auto":
        return asked
    from_environment = os.environ.get("WANDB_MODE", "").lower()
    if from_environment:
        known = {"dryrun": "offline", "run": "online", "shared": "online"}
        mode = known.get(from_environment, from_environment)
        if mode not in WANDB_MODES[1:]:
            raise UserError(f"WANDB_MODE={from_environment!r}: allowed are {', '.join(WANDB_MODES[1:])}.")
        return mode
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def keep_rows_until(file: Path, step: int) -> None:
    """Drops, atomically, the rows of a metrics.jsonl after `step`, and a last row that a crash cut short."""
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            row_step = json.loads(line)[STEP_KEY]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                continue
            raise UserError(
                f"{file}:{number}: not a row of metrics ({line[:60]!r}). Delete the row, or use another "
                "output_dir."
            ) from error
        if row_step <= step:
            kept.append(line)
    write_atomic(file, "".join(f"{line}\n" for line in kept))


def _start_run(
    folder: Path,
    mode: str,
    stage: str,
    config: Mapping[str, Any],
    project: str | None,
    group: str | None,
    run_id: str | None,
) -> Any:
    import wandb

    def start(mode: Any) -> Any:
        return wandb.init(
            project=redact(project or os.environ.get("WANDB_PROJECT") or "tinybert_dist"),
            group=redact(group),
            job_type=stage,
            name=f"{stage}-{folder.name}",
            id=run_id,
            resume="allow" if run_id else None,
            dir=str(folder),
            config=dict(config),
            mode=mode,
            settings=_private_settings(wandb),
        )

    try:
        run = start(mode)
    except wandb.errors.Error as error:
        if mode != "online":
            raise
        logger.warning(
            "wandb could not start online (%s); logging offline instead: `wandb sync` the folder later.",
            error,
        )
        run = start("offline")
    run.define_metric(STEP_KEY, hidden=True)
    for pattern in STEPPED:
        run.define_metric(pattern, step_metric=STEP_KEY)
    return run


def _private_settings(wandb: Any) -> Any:
    # what a run uploads says nothing of the machine, its user, its folders or its source code
    return wandb.Settings(
        host="hidden",
        username="hidden",
        email="hidden",
        program="tinybert_dist",
        program_relpath="tinybert_dist",
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=INIT_TIMEOUT_S,
    )


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
