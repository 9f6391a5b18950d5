"""The nine GLUE tasks: files, columns, label order and scores."""

import dataclasses
import difflib

from tinybert_dist.config import UserError


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """Where a task's files, texts and labels are, and how it is scored.

    Columns are 0-based numbers in tab-separated files without quoting, or names in tables that carry a header
    of their own (`label_column` -1 = the last). `labels` is the order of the classes; () for regression.
    `num_columns`: fields of every row of a file without header; with a header its width is the law.
    """

    name: str
    mode: str = "classification"
    labels: tuple[str, ...] = ()
    text_columns: tuple[int | str, ...] = (0,)
    label_column: int | str = -1
    test_columns: tuple[int | str, ...] = (0,)
    has_header: bool = True
    test_has_header: bool = True
    train_file: str = "train.tsv"
    dev_files: dict[str, str] = dataclasses.field(default_factory=lambda: {"dev": "dev.tsv"})
    test_files: dict[str, str] = dataclasses.field(default_factory=lambda: {"test": "test.tsv"})
    selection_metric: str = "accuracy"
    metrics: tuple[str, ...] = ("accuracy",)
    num_columns: int | None = None

    @property
    def num_labels(self) -> int:
        """Width of the model's output: the number of classes, 1 for regression."""
        return 1 if self.mode == "regression" else len(self.labels)

    def class_name(self, label: float | None) -> str:
        """Name of a class index; "" for a missing label and for the value of a regression."""
        return "" if label is None or not self.labels else self.labels[int(label)]

    @property
    def is_table(self) -> bool:
        """True when columns go by name, False when they go by number."""
        return isinstance(self.text_columns[0], str)


BINARY, ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
MNLI_DEV = {"dev_matched": "dev_matched.tsv", "dev_mismatched": "dev_mismatched.tsv"}
MNLI_TEST = {"test_matched": "test_matched.tsv", "test_mismatched": "test_mismatched.tsv"}
MNLI_LABELS = ("contradiction", "entailment", "neutral")
WITH_F1 = ("accuracy", "f1")
STSB_METRICS = ("pearson", "spearman", "pearson_spearman", "mse")

# name, mode, labels, text columns, label column, test columns
GLUE: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            "CoLA", "classification", BINARY, (3,), 1, (1,), has_header=False, num_columns=4,
            selection_metric="mcc", metrics=("mcc", "accuracy"),
        ),
        TaskSpec("SST-2", "classification", BINARY, (0,), 1, (1,)),
        TaskSpec("MRPC", "classification", BINARY, (3, 4), 0, (3, 4), metrics=WITH_F1),
        TaskSpec("QQP", "classification", BINARY, (3, 4), 5, (1, 2), metrics=WITH_F1),
        TaskSpec(
            "STS-B", "regression", (), (7, 8), -1, (7, 8),
            selection_metric="pearson_spearman", metrics=STSB_METRICS,
        ),
        TaskSpec(
            "MNLI", "classification", MNLI_LABELS, (8, 9), -1, (8, 9),
            dev_files=MNLI_DEV, test_files=MNLI_TEST,
        ),
        TaskSpec("QNLI", "classification", ENTAILMENT, (1, 2), -1, (1, 2)),
        TaskSpec("RTE", "classification", ENTAILMENT, (1, 2), -1, (1, 2)),
        TaskSpec("WNLI", "classification", BINARY, (1, 2), -1, (1, 2)),
    )
}  # fmt: skip


def is_glue(name: str | None) -> bool:
    """Whether `name` is one of the nine tasks, however it is cased and hyphened."""
    return name is not None and _plain(name) in {_plain(known) for known in GLUE}


def glue_task(name: str) -> TaskSpec:
    """The GLUE task called `name`; case and hyphens do not matter. Raises UserError with the nearest name."""
    by_plain_name = {_plain(known): spec for known, spec in GLUE.items()}
    if (spec := by_plain_name.get(_plain(name))) is not None:
        return spec
    near = difflib.get_close_matches(_plain(name), by_plain_name, n=1, cutoff=0.5)
    hint = f" Did you mean {by_plain_name[near[0]].name}?" if near else ""
    raise UserError(f"--task_name {name}: not a GLUE task.{hint} Known: {', '.join(GLUE)}.")


def _plain(name: str) -> str:
    # nothing else: a name becomes part of a path, and ../SST-2 is not SST-2
    return "".join(character for character in name.lower() if character not in "-_ ")
