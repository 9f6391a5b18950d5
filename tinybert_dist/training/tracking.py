"""What a run leaves for the reader: one wandb run per stage and, for training, metrics.jsonl; both written by
the main process alone.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinybert_dist.config import HfArg, UserError
from tinybert_dist.files import write_atomic
from tinybert_dist.lineage import lineage_of, travelling, write_lineage
from tinybert_dist.training import wandb_run
from tinybert_dist.training.heartbeat import keep_beating
from tinybert_dist.training.samples import worst_predictions
from tinybert_dist.training.wandb_run import STEP_KEY

logger = logging.getLogger(__name__)
PACKAGES = ("torch", "transformers", "accelerate")


@dataclass(kw_only=True)
class TrackingOptions:
    """Whether and where a stage is followed in wandb."""

    wandb_mode: str = HfArg(
        default="auto",
        metadata={"choices": ["auto", "online", "offline", "disabled"]},
        help="auto: online with an API key, else offline files in the output folder",
    )
    wandb_project: str | None = HfArg(
        default=None, help="wandb project (default: WANDB_PROJECT, else tinybert_dist)"
    )
    run_group: str | None = HfArg(default=None, help="wandb group, such as the name of a pipeline")
    wandb_log_model: str = HfArg(
        default="final",
        metadata={"choices": ["final", "none"]},
        help="final: the finished model becomes a wandb artifact (offline it is uploaded by the sync, from "
        "where it is); none: only its name and fingerprint",
    )
    wandb_samples: int = HfArg(
        default=100, help="texts shown in a table of predictions or augmentations; 0: no text goes to wandb"
    )


class Tracker:
    """What a stage is followed with: `with Tracker(...) as tracker:`; after an error its wandb run says that
    it failed. Every method does nothing on other than the main process, and without wandb its part.

    The wandb run is made at the first start of a stage in its folder, and continued by every later one there.
    `wandb_mode` "auto" is online with an API key, else offline; WANDB_MODE wins over "auto".

    config: options and facts by name; paths are cut down to their last part. resume_step: of a training run,
    which writes metrics.jsonl; its rows after this step are dropped, so a replayed step has one row. name: of
    what the stage makes there, where it may make several things in one folder.

    Raises UserError for an unknown mode or a metrics.jsonl that is not ours.
    """

    def __init__(
        self,
        options: TrackingOptions,
        stage: str,
        folder: str | Path,
        is_main: bool,
        config: Mapping[str, Any],
        *,
        resume_step: int | None = None,
        name: str = "",
    ):
        self.options, self.stage, self.folder, self.is_main = options, stage, Path(folder), is_main
        self._run: Any = None
        self._run_id: str | None = None
        self._place = ""
        self._file: Any = None
        # other stages leave wandb's step to wandb: a later start goes on counting
        self._step = resume_step
        self.name = f"{stage}-{name or self.folder.absolute().name}"
        self._note = self.folder / "wandb" / f"{stage}{name and '-'}{name}.json"
        self._base = wandb_run.base_folder(self._note)
        self._made_from: dict[str, Any] = {}
        if not is_main:
            return
        mode = wandb_run.resolve_mode(options.wandb_mode)
        if resume_step is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            keep_rows_until(self.folder / "metrics.jsonl", resume_step)
            self._file = open(self.folder / "metrics.jsonl", "a", encoding="utf-8", buffering=1)
        if mode != "disabled":
            self._run = wandb_run.start_run(
                self._note,
                self.name,
                mode,
                stage,
                self._settings(config),
                wandb_run.project_name(options.wandb_project),
                options.run_group or os.environ.get("WANDB_RUN_GROUP"),
            )
            self._run_id = self._run.id
            offline = f"{self._base / 'wandb'}; upload: (cd {self._base} && wandb sync --yes)"
            self._place = offline if self._run.offline else self._run.url

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(0 if kind is None else 1)

    def _settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What goes into the run's config: what decides the numbers, and what computed them."""
        left_out = {field.name for field in fields(TrackingOptions)} | {"output_dir", "dry_run"}
        settings = {k: v for k, v in config.items() if k not in left_out and v is not None}
        return travelling(settings) | {"versions": {name: version(name) for name in PACKAGES}}

    @property
    def run_id(self) -> str | None:
        """Id of the wandb run; None where wandb is disabled or on other than the main process."""
        return self._run_id

    @property
    def place(self) -> str:
        """Where the wandb run is: its address, or its folder and the command that uploads it."""
        return self._place

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row of numbers for optimizer step `step`. Steps must not go back within a run."""
        if self._step is not None:
            self._step = step
        row = {STEP_KEY: step, **{key: _plain(value) for key, value in values.items()}}
        if self._file is not None:
            # JSON has no NaN: null keeps the file readable by every parser
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            self._file.write(json.dumps(finite) + "\n")
            self._file.flush()
        if self._run is not None:
            self._run.log(row, step=self._step)

    def log_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table in the wandb run, at the last logged step (a step of its own would make wandb drop the
        next).
        """
        if self._run is not None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[[_plain(x) for x in row] for row in rows])
            with self._sending(f"the table {name}"):
                self._run.log({name: table}, step=self._step)

    def log_predictions(self, folder: str | Path) -> None:
        """Tables of --wandb_samples rows of each predictions*.tsv in a folder, the mistakes first."""
        if self._run is not None and self.options.wandb_samples > 0:
            for file in sorted(Path(folder).glob("predictions*.tsv")):
                self.log_table(file.stem, *worst_predictions(file, self.options.wandb_samples))

    def log_image(self, path: str | Path, name: str | None = None) -> None:
        """A picture file (PNG curves) in the wandb run, named after the file unless `name` is given."""
        if self._run is not None:
            import wandb

            with self._sending(f"the picture {Path(path).name}"):
                self._run.log({name or Path(path).stem: wandb.Image(str(path))}, step=self._step)

    def _seen(self, model: str | Path, name: str) -> Path:
        return wandb_run.seen_from(self._base, Path(model), f"{self.stage}-{name}")

    @contextmanager
    def _sending(self, what: str) -> Iterator[None]:
        try:
            with wandb_run.staged_in(self._base):
                yield
        except Exception as error:  # whatever wandb meets, the run and its model are worth more
            logger.warning("%s did not get into wandb: %s: %s", what, type(error).__name__, error)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final figures of the run, shown in wandb's table of runs."""
        if self._run is not None:
            self._run.summary.update({key: _plain(value) for key, value in values.items()})

    def use_model(self, option: str, model: str | Path) -> None:
        """Notes a model that goes in, under the name of its option: in the run's config and in the lineage of
        what comes out; one that another tracked stage made is linked as an artifact.
        """
        if not self.is_main:
            return
        record = self._made_from[option] = lineage_of(model)
        if self._run is None:
            return
        self._run.config.update({"made_from": self._made_from}, allow_val_change=True)
        made_by = record.get("wandb")
        if made_by and made_by["artifact"] and made_by["project"] == self._run.project:
            with self._sending(f"the link to {record['name']}"):
                artifact = wandb_run.model_artifact(record, self._seen(model, option), {})
                wandb_run.link_input(self._run, artifact, made_by["run_id"], self._base)

    def log_model(self, folder: str | Path, facts: Mapping[str, Any] | None = None) -> None:
        """Notes the finished model in `folder`: lineage.json beside its weights and, unless
        --wandb_log_model none, an artifact. facts: numbers that describe it, such as its scores.
        """
        if not self.is_main:
            return
        wandb_note = None
        if self._run is not None:
            wandb_note = {
                "project": self._run.project,
                "group": self._run.group or None,
                "run_id": self._run.id,
                "artifact": self.options.wandb_log_model != "none",
            }
        record = write_lineage(folder, self.name, self.stage, self._made_from, wandb_note)
        if wandb_note and wandb_note["artifact"]:
            with self._sending("the model"):
                artifact = wandb_run.model_artifact(record, self._seen(folder, "made"), facts or {})
                self._run.log_artifact(artifact, aliases=["latest", f"run-{self._run.id}"])

    def finish(self, exit_code: int = 0) -> None:
        """Closes both; may be called twice. Call it before an exit on a signal: wandb buffers seconds."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._run is not None:
            import wandb

            with keep_beating("upload"):  # of a model perhaps, through a slow line
                self._run.finish(exit_code=exit_code)
                # finish() returns up to 30 ms before the service has written the file (seen: 7 bytes)
                wandb.teardown(exit_code=exit_code)
            self._run = None


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


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
