"""What a training stage hands to the loop."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tinybert_dist.data.batches import Collator, SampleTransform
from tinybert_dist.data.stream import Stream
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.distill.modules import LossModule
from tinybert_dist.micro_batch import MicroBatch
from tinybert_dist.training.options import TrainingOptions
from tinybert_dist.training.strategy import RunAccelerator

Targets = Callable[[MicroBatch], Any]


def no_targets(batch: MicroBatch) -> None:
    """Targets of a module that learns from the batch alone."""
    return None


@dataclass
class Job:
    """One training run.

    inputs: fingerprints of data and models by option name; with the options they are the run's identity.
    make_targets: builds what `module` is called with beside the micro-batch (Teacher, KeptLogits, nothing);
        called once the folder is known to be this run's and unfinished, since it may take long.
    evaluate: metrics with a "score" (higher is better) of the module as it is now, computed by all processes.
    models: the models that go in, folder or hub name by option, for the lineage of what comes out.
    bad_records: what was passed over while the data were read, for the end.
    keep: whether the best or the last evaluated weights become the finished model.
    write_outputs: writes model folder and result files from the module into a folder; collective.
    """

    stage: str
    options: TrainingOptions
    accelerator: RunAccelerator
    module: LossModule
    dataset: TokenDataset | Stream
    collate: Collator
    inputs: dict[str, Any]
    write_outputs: Callable[[Path, dict[str, Any]], None]
    make_targets: Callable[[], Targets] = lambda: no_targets
    transform: SampleTransform | None = None
    evaluate: Callable[[], dict[str, float]] | None = None
    bad_records: str = ""
    keep: Literal["best", "last"] = "last"
    facts: dict[str, Any] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    targets: Targets = no_targets  # what make_targets returned
