"""Does the schedule do what was meant? Steps, warm-up, learning rate, batch, and how often things happen."""

import math
from collections.abc import Iterator
from pathlib import Path

from tinybert_dist.data.token_manifest import MANIFEST
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.preflight.findings import Finding, ok, warning
from tinybert_dist.preflight.machine import processes
from tinybert_dist.preflight.subject import SAMPLE_ROWS, Subject

LEARNING_RATES = (1e-8, 1e-2)
MAX_WARMUP = 0.5
FEW_STEPS = 10


def check_schedule(subject: Subject) -> Iterator[Finding]:
    """Batch, learning rate, warm-up; with the number of steps, where it is known before the data are read."""
    config = subject.config
    yield from _check_rates(subject)
    yield from _check_batch(subject)
    rows = None if config.max_steps else _known_rows(subject)
    steps = config.max_steps or (rows and _steps(subject, rows))
    if not steps:
        return
    if not config.max_steps and steps < FEW_STEPS:
        yield warning(
            f"{steps} optimizer steps in all: {rows:,} examples, --train_batch_size "
            f"{config.train_batch_size}, --num_train_epochs {config.num_train_epochs:g}.",
            "Give a smaller --train_batch_size, more --num_train_epochs, or --max_steps.",
        )
    for name, what in (("eval_step", "nothing is evaluated"), ("save_step", "nothing is saved")):
        if (every := getattr(config, name)) is not None and every > steps:
            yield warning(
                f"--{name} {every:,} is more than the {steps:,} optimizer steps of the run: {what} before "
                "its end.",
                f"Give a smaller --{name}.",
            )
    yield ok(f"{steps:,} optimizer steps of {config.train_batch_size} examples")


def _check_rates(subject: Subject) -> Iterator[Finding]:
    config = subject.config
    rates = ["learning_rate"] + (["pretrain_learning_rate"] if subject.has("pretrain_file_path") else [])
    low, high = LEARNING_RATES
    for name in rates:
        value = getattr(config, name)
        if not low <= value <= high:
            fate = "the loss would diverge" if value > high else "nothing would be learned"
            yield warning(
                f"--{name} {value:g}: {fate}.", "Usual are 1e-5 to 1e-3; 5e-5 is the default of fine-tuning."
            )
    if config.warmup_proportion > MAX_WARMUP:
        yield warning(
            f"--warmup_proportion {config.warmup_proportion:g}: the learning rate rises for "
            f"{100 * config.warmup_proportion:.0f} % of the run.",
            "It is a share of the steps, not their number; usual is 0.1.",
        )


def _check_batch(subject: Subject) -> Iterator[Finding]:
    config, world_size = subject.config, processes.world_size
    micro_batches = world_size * config.gradient_accumulation_steps
    if micro_batches > config.train_batch_size:
        yield warning(
            f"--train_batch_size {config.train_batch_size} is divided into {micro_batches} micro-batches "
            f"({world_size} processes, --gradient_accumulation_steps {config.gradient_accumulation_steps}): "
            "some are empty.",
            "It counts the examples of all processes together: give a larger one, or fewer processes.",
        )


def _known_rows(subject: Subject) -> int | None:
    """Rows of one epoch, where looking at the first ones tells."""
    if not hasattr(subject.config, "data_dir"):
        path = Path(subject.config.train_file_path)
        return len(TokenDataset.open(path)) if (path / MANIFEST).is_file() else None
    if subject.has("unlabelled_file_path") or (
        subject.has("aug_train") and "train_aug" not in _names(subject)
    ):
        return None
    found = subject.first_rows["train"]
    return len(found.texts) if found.mistake is None and len(found.texts) < SAMPLE_ROWS else None


def _names(subject: Subject) -> str:
    return subject.task.paths["train"].name


def _steps(subject: Subject, rows: int) -> int:
    steps_per_epoch = math.ceil(rows / subject.config.train_batch_size)
    return math.ceil(steps_per_epoch * subject.config.num_train_epochs)
