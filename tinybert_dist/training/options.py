"""Options every training stage takes."""

from dataclasses import dataclass, fields

from tinybert_dist.config import HfArg, StageOptions, UserError
from tinybert_dist.training.tracking import TrackingOptions


@dataclass(kw_only=True)
class TrainingOptions(TrackingOptions, StageOptions):
    """How a model is trained: batch, schedule, precision, and how often things happen."""

    train_batch_size: int = HfArg(
        default=32, help="examples of one optimizer step, over all processes and micro-batches"
    )
    gradient_accumulation_steps: int = HfArg(
        default=1, help="micro-batches per process that make one optimizer step"
    )
    micro_batch_tokens: int | None = HfArg(
        default=None,
        help="real tokens of one micro-batch at most (mean); more are accumulated (default: by device)",
    )
    learning_rate: float = HfArg(default=5e-5, help="peak learning rate")
    num_train_epochs: float = HfArg(default=3.0, help="passes over the training data")
    max_steps: int | None = HfArg(default=None, help="optimizer steps in all; overrides --num_train_epochs")
    warmup_proportion: float | None = HfArg(
        default=None,
        help="share of the steps with linear warm-up (default: 0.1; 0 under a constant schedule)",
    )
    lr_schedule: str | None = HfArg(
        default=None,
        metadata={"choices": ["linear", "constant"]},
        help="after the warm-up (default: linear; task_distill step 1: constant, as the reference)",
    )
    weight_decay: float = HfArg(default=0.01, help="decoupled, not on biases and LayerNorm")
    adam_epsilon: float = HfArg(default=1e-6, help="epsilon of AdamW")
    max_grad_norm: float = HfArg(default=1.0, help="global gradient norm is clipped to this; 0 = never")
    mixed_precision: str = HfArg(
        default="auto",
        metadata={"choices": ["auto", "fastest", "no", "bf16"]},
        help="auto: bf16 on GPUs that have it; fastest: on CPUs that have it, too",
    )
    layout: str = HfArg(
        default="auto",
        metadata={"choices": ["auto", "packed", "padded", "fixed"]},
        help="packed: no padding; padded: to the longest of a micro-batch; fixed: to the maximum length",
    )
    num_workers: int = HfArg(default=0, help="processes that prefetch batches")
    logging_steps: int = HfArg(default=50, help="optimizer steps between rows of metrics.jsonl")
    eval_step: int | None = HfArg(
        default=None, help="optimizer steps between evaluations (default: once an epoch)"
    )
    save_step: int | None = HfArg(
        default=None, help="optimizer steps between checkpoints (default: at evaluations)"
    )
    checksum_step: int = HfArg(
        default=1000, help="optimizer steps between cross-process checks of the weights"
    )
    keep_checkpoints: int = HfArg(default=2, help="newest checkpoints kept, beside the best")
    eval_batch_size: int = HfArg(
        default=64, help="examples of one evaluation micro-batch, counted at maximum length"
    )
    max_seconds: float | None = HfArg(
        default=None, help="save and stop (resumable) after this many seconds of training"
    )
    hang_timeout_s: float = HfArg(
        default=600.0,
        help="seconds without progress after which a hanging process is named and the job ended (resumable)",
    )
    continue_train: bool = HfArg(default=False, help="accepted for old command lines: resuming is automatic")

    def __post_init__(self) -> None:
        for name in (
            "train_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "checksum_step",
            "keep_checkpoints",
            "eval_batch_size",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1")
        for name in ("micro_batch_tokens", "max_steps", "eval_step", "save_step"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1")
        self.lr_schedule = self.lr_schedule or "linear"
        if self.warmup_proportion is None:
            self.warmup_proportion = 0.1 if self.lr_schedule == "linear" else 0.0
        if not 0 <= self.warmup_proportion <= 1:
            raise UserError(f"--warmup_proportion {self.warmup_proportion}: must lie between 0 and 1")
        if self.learning_rate <= 0 or self.num_train_epochs <= 0:
            raise UserError("--learning_rate and --num_train_epochs must be greater than 0")
        if self.hang_timeout_s <= 0:
            raise UserError(f"--hang_timeout_s {self.hang_timeout_s}: must be greater than 0")
        if self.gradient_accumulation_steps > self.train_batch_size:
            raise UserError(
                f"--gradient_accumulation_steps {self.gradient_accumulation_steps} is more than "
                f"--train_batch_size {self.train_batch_size}: the batch of one optimizer step is divided "
                "into that many micro-batches"
            )


# Options that do not change the numbers a run computes: they may differ when it is resumed.
OPERATIONAL = {
    "output_dir", "dry_run", "num_workers", "logging_steps", "save_step", "checksum_step", "keep_checkpoints",
    "eval_batch_size", "max_seconds", "hang_timeout_s", "continue_train", "teacher_sharding",
    *(field.name for field in fields(TrackingOptions)),
}  # fmt: skip
