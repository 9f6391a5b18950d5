"""Scores of a classification model on a task's splits, and the files they are reported in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tinybert_dist.data.batches import Collator
from tinybert_dist.data.encoding import encode
from tinybert_dist.data.predictions import write_predictions
from tinybert_dist.data.tasks import TaskData
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.files import write_atomic, write_json
from tinybert_dist.training.evaluation import predict
from tinybert_dist.training.strategy import RunAccelerator


@dataclass
class Scorer:
    """Evaluates on every dev (or test) split of a task; the first is the one that selects.

    label_order: [C] index of the task's class c among the model's classes.
    """

    task: TaskData
    datasets: dict[str, TokenDataset]
    collate: Collator
    accelerator: RunAccelerator
    max_tokens: int
    label_order: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        task: TaskData,
        splits: list[str],
        tokenizer: PreTrainedTokenizerBase,
        collate: Collator,
        accelerator: RunAccelerator,
        eval_batch_size: int,
        label_order: np.ndarray | None = None,
    ) -> "Scorer":
        """Encodes `splits` at the collator's maximum length."""
        datasets = {s: encode(task.splits[s], tokenizer, collate.max_length, task.origins[s]) for s in splits}
        return cls(task, datasets, collate, accelerator, eval_batch_size * collate.max_length, label_order)

    def logits(self, model: PreTrainedModel, split: str) -> np.ndarray:
        """[N, C] in the task's label order; regression: [N]. Collective; the model's mode stays."""
        was_training = model.training
        model.eval()
        logits = predict(model, self.datasets[split], self.collate, self.accelerator, self.max_tokens)
        model.train(was_training)
        return self.in_task_order(logits)

    def in_task_order(self, logits: np.ndarray) -> np.ndarray:
        """A model's [N, C] in the task's label order; regression: [N]."""
        if self.task.spec.mode == "regression":
            return logits[:, 0]
        return logits if self.label_order is None else logits[:, self.label_order]

    def metrics(self, split: str, logits: np.ndarray) -> dict[str, float]:
        """The task's metrics, the mean loss against the labels, and the number of examples."""
        from tinybert_dist.data import metrics  # imports scikit-learn: a second

        spec, labels = self.task.spec, self.datasets[split].labels
        assert labels is not None
        if spec.mode == "regression":
            values = metrics.compute(spec.metrics, logits, labels)
            loss = float(np.mean((logits - labels) ** 2))
        else:
            values = metrics.compute(spec.metrics, logits.argmax(axis=1), labels.astype(np.int64))
            loss = float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels.astype(np.int64)].mean())
        return {**values, "loss": loss, "num_examples": len(labels)}

    def all_logits(self, model: PreTrainedModel) -> dict[str, np.ndarray]:
        """Logits of every split. Collective."""
        return {split: self.logits(model, split) for split in self.datasets}

    def scores(self, logits: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of the labelled splits, `<split>/<metric>`, and "score": the first's selection metric."""
        by_split = {s: self.metrics(s, values) for s, values in logits.items() if self.is_labelled(s)}
        flat = {
            f"{split}/{name}": value for split, values in by_split.items() for name, value in values.items()
        }
        first = next(iter(by_split.values()), None)
        return flat if first is None else {"score": first[self.task.spec.selection_metric], **flat}

    def is_labelled(self, split: str) -> bool:
        """Whether every row of a split has a label."""
        labels = self.datasets[split].labels
        return labels is not None and not bool(np.isnan(labels).any())

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """`scores` of the model as it is now. Collective."""
        return self.scores(self.all_logits(model))

    def write_predictions(self, folder: Path, logits: dict[str, np.ndarray]) -> None:
        """predictions.tsv of the first split, predictions_<split>.tsv of the others. Call on one process."""
        for number, (split, values) in enumerate(logits.items()):
            name = "predictions.tsv" if number == 0 else f"predictions_{split}.tsv"
            lines = self.task.origins[split].lines
            write_predictions(folder / name, self.task.spec, lines, self.task.splits[split], values)


def write_results(folder: Path, task: str, selection_metric: str, result: dict[str, Any]) -> None:
    """eval_results.json and the reference's eval_results.txt (`name = value`) from Scorer's flat metrics."""
    facts = {
        "task": task,
        "selection_metric": selection_metric,
        "score": result["score"],
        "step": result["step"],
    }
    write_json(folder / "eval_results.json", {**facts, "splits": by_metric(result)})
    lines = [f"{name} = {value}" for name, value in sorted(result.items())]
    write_atomic(folder / "eval_results.txt", "\n".join(lines) + "\n")


def by_metric(flat: dict[str, Any]) -> dict[str, dict[str, float]]:
    """{split: {metric: value}} of Scorer's flat `<split>/<metric>`."""
    splits: dict[str, dict[str, float]] = {}
    for name, value in flat.items():
        split, slash, metric = name.partition("/")
        if slash:
            splits.setdefault(split, {})[metric] = value
    return splits
