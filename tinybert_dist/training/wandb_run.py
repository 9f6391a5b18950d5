"""One wandb run: how it is started, what its charts are drawn over, and models as artifacts of it."""

import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tinybert_dist.config import UserError, redact
from tinybert_dist.files import read_json, write_json

MODES = ("auto", "online", "offline", "disabled")
# wandb's step counter cannot be set back on resume, so charts are drawn over a step of our own
STEP_KEY = "step"
# what is kept of every metric for the table of runs
SUMMARIES = {
    "loss/*": "min,last",
    "eval/*": "min,max,last",
    "throughput/*": "mean,last",
    "data/*": "last",
    "grad_norm": "max,last",
    "learning_rate": "last",
    "epoch": "last",
}
INIT_TIMEOUT_S = 30
MODEL_FILES = (
    "config.json", "model.safetensors", "projections.safetensors", "lineage.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
logger = logging.getLogger(__name__)


def resolve_mode(asked: str) -> str:
    """online, offline or disabled. Raises UserError for an unknown value of the option or of WANDB_MODE."""
    if asked not in MODES:
        raise UserError(f"wandb mode {asked!r}: allowed are {', '.join(MODES)}.")
    if asked != "auto":
        return asked
    from_environment = os.environ.get("WANDB_MODE", "").lower()
    if from_environment:
        known = {"dryrun": "offline", "run": "online", "shared": "online"}
        mode = known.get(from_environment, from_environment)
        if mode not in MODES[1:]:
            raise UserError(f"WANDB_MODE={from_environment!r}: allowed are {', '.join(MODES[1:])}.")
        return mode
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def project_name(asked: str | None) -> str:
    """The project: as asked, else by WANDB_PROJECT, else this program's."""
    return asked or os.environ.get("WANDB_PROJECT") or "tinybert_dist"


def run_id_of(note: Path) -> str:
    """Id of a stage's run: made at the first start and kept in `note` for all later ones."""
    if note.is_file():
        return read_json(note)["run_id"]
    run_id = secrets.token_hex(4)
    write_json(note, {"run_id": run_id})
    return run_id


def base_folder(note: Path) -> Path:
    """The folder whose wandb/ holds the run."""
    return Path(os.environ.get("WANDB_DIR") or note.parent.parent)


def start_run(
    note: Path,
    name: str,
    mode: str,
    stage: str,
    config: Mapping[str, Any],
    project: str,
    group: str | None,
) -> Any:
    """The wandb run of a stage, continued when `note` is there to name it.

    An online start that fails falls back to offline with a warning.
    """
    import wandb

    base = base_folder(note)

    def start(mode: Any) -> Any:
        return wandb.init(
            project=redact(project),
            group=redact(group),
            job_type=stage,
            name=name,
            id=run_id_of(note),
            resume="allow",
            dir=str(base if mode == "offline" else base.absolute()),
            config=dict(config),
            allow_val_change=True,  # resumed with another number of processes
            mode=mode,
            settings=_private_settings(wandb),
        )

    try:
        with nullcontext() if mode == "offline" else _in_folder(base):
            run = start(mode)
    except wandb.errors.Error as error:
        if mode != "online":
            raise
        logger.warning(
            "wandb could not start online (%s); logging offline instead: `wandb sync` the folder later.",
            error,
        )
        wandb.teardown()  # the service still holds the id
        run = start("offline")
    _log_artifacts_from(run, base)
    run.define_metric(STEP_KEY, hidden=True)
    for pattern, summary in SUMMARIES.items():
        run.define_metric(pattern, step_metric=STEP_KEY, summary=summary)
    return run


def model_artifact(record: Mapping[str, Any], folder: Path, facts: Mapping[str, Any]) -> Any:
    """A model folder with its lineage (`record`) as an artifact. Its files stay where they are: there is no
    second copy of the weights. The same files make the same version, whoever logs them.
    """
    import wandb

    card = folder / "README.md"
    artifact = wandb.Artifact(
        re.sub(r"[^A-Za-z0-9_.-]+", "-", record["name"])[:128],
        type="model",
        description=card.read_text(encoding="utf-8") if card.is_file() else None,
        metadata={**record, **facts},
    )
    for file in (folder / name for name in MODEL_FILES):
        if file.is_file():
            artifact.add_file(str(file), name=file.name, policy="immutable", skip_cache=True)
    return artifact


def link_input(run: Any, artifact: Any, made_by: str, base: Path) -> None:
    """Links an artifact, made by the run of id `made_by`, as an input of the run."""
    _forget_machine(artifact, base)
    # what use_artifact() does with a new artifact, but also offline, where it refuses, and without waiting
    run._log_artifact(artifact, aliases=[f"run-{made_by}"], use_after_commit=True)


def seen_from(base: Path, folder: Path, name: str) -> Path:
    """A model folder by a path inside the run's base folder, through a link where it lies elsewhere."""
    if folder.resolve().is_relative_to(base.resolve()):
        return folder
    link = base / "wandb" / "models" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(folder.resolve(), link.parent.resolve()))
    return link


def _log_artifacts_from(run: Any, base: Path) -> None:
    # also those that wandb makes of tables
    log_artifact = run.log_artifact

    def forgetting(artifact: Any, *arguments: Any, **options: Any) -> Any:
        _forget_machine(artifact, base)
        return log_artifact(artifact, *arguments, **options)

    run.log_artifact = forgetting


def _forget_machine(artifact: Any, base: Path) -> None:
    # what uploads a file finds it by this path, and sends the path along: so it starts from the run's folder,
    # where a sync is run, and where the service was started
    for entry in artifact.manifest.entries.values():
        if entry.local_path:
            entry.local_path = os.path.relpath(entry.local_path, base)


@contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    # the service that is started meanwhile stays there
    before = os.getcwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def staged_in(folder: Path) -> Iterator[None]:
    """Files that wait for their upload wait in `folder`/wandb, unless WANDB_DATA_DIR says where.

    By default that is the home of this machine's user, where a sync from another machine does not find them.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


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
