"""Options of the benchmark: those of the run it is to predict, and what to measure."""

from dataclasses import dataclass, field

from tinybert_dist.config import HfArg, UserError
from tinybert_dist.data.options import CorpusOptions
from tinybert_dist.distill.options import DistillOptions
from tinybert_dist.training.options import TrainingOptions

STAGES = ("general", "step_1", "step_2", "teacher", "evaluate")
SWEEP_TOKENS = {"cpu": (256, 512, 1024, 2048, 4096), "cuda": (2048, 4096, 8192, 16384, 32768, 65536, 131072)}


@dataclass(kw_only=True)
class BenchmarkOptions(CorpusOptions, DistillOptions, TrainingOptions):
    """benchmark: the speed of every stage on this machine, for these models and this text."""

    output_dir: str = HfArg(default="", help="folder for benchmark.json (default: none is written)")
    json: str | None = HfArg(default=None, help="file for the same figures, instead of or beside it")
    teacher_model: str | None = HfArg(
        default=None, help="hub name or folder whose size is measured (default: BERT-base)"
    )
    student_model: str = HfArg(
        default="tinybert-4l-312", help="tinybert-4l-312, tinybert-6l-768, a config.json or a folder"
    )
    train_file_path: str | None = HfArg(
        default=None, help="text of your own, or a folder of prepare_corpus (default: sentences are made up)"
    )
    mode: str = HfArg(
        default="line",
        metadata={"choices": ["pairs", "line"]},
        help="as in prepare_corpus; sentences that are made up are lines",
    )
    stages: list[str] = field(
        default_factory=lambda: list(STAGES),
        metadata={"help": "general, step_1, step_2, teacher (fine-tuning) and evaluate, or some of them"},
    )
    sweep_tokens: list[int] | None = field(
        default=None,
        metadata={"help": "values of --micro_batch_tokens to compare (default: by device; 0: none)"},
    )
    measure_s: float = HfArg(default=5.0, help="seconds for one measurement; 3 repetitions at least")
    warm_up_steps: int = HfArg(default=2, help="repetitions before a measurement (compiled: more)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.stages if name not in STAGES]:
            raise UserError(f"--stages {unknown[0]}: give some of {', '.join(STAGES)}")
        if self.measure_s < 0:
            raise UserError(f"--measure_s {self.measure_s}: must not be negative")
        if self.warm_up_steps < 1:
            raise UserError(f"--warm_up_steps {self.warm_up_steps}: must be at least 1")
        if min(self.sweep_tokens or [0]) < 0:
            raise UserError(f"--sweep_tokens {min(self.sweep_tokens or [0])}: must not be negative")

    def candidates(self, device_type: str) -> list[int]:
        """Micro-batch sizes to compare, smallest first."""
        asked = SWEEP_TOKENS[device_type] if self.sweep_tokens is None else self.sweep_tokens
        return sorted({tokens for tokens in asked if tokens})
