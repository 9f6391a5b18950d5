"""Logits over a dataset: every row exactly once, on all processes together."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tinybert_dist.data.batches import Collator, evaluation_batches
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.distill.capture import classify, encode
from tinybert_dist.distill.losses import at_least_float32
from tinybert_dist.micro_batch import MicroBatch
from tinybert_dist.training.heartbeat import beat
from tinybert_dist.training.strategy import RunAccelerator, autocast


def predict(
    model: PreTrainedModel,
    dataset: TokenDataset,
    collate: Collator,
    accelerator: RunAccelerator,
    max_tokens: int,
) -> np.ndarray:
    """Logits [N, C] (float64) of a classification model in evaluation mode; see logits_of."""
    assert not model.training, "predictions with dropout on"

    def forward(batch: MicroBatch) -> Tensor:
        return at_least_float32(classify(model, batch, encode(model, batch).hidden[-1]))

    return logits_of(forward, model.config.num_labels or 0, dataset, collate, accelerator, max_tokens)


@torch.inference_mode()
def logits_of(
    forward: Callable[[MicroBatch], Tensor],
    num_classes: int,
    dataset: TokenDataset,
    collate: Collator,
    accelerator: RunAccelerator,
    max_tokens: int,
    rows: range | None = None,
) -> np.ndarray:
    """Logits [N, C] (float64) of `rows` (None: of all), in order, from forwards that give [B, C].

    The same on every process. Collective, and so may the forwards be: every process computes as many.
    """
    rows = range(len(dataset)) if rows is None else rows
    # last column: times a row was computed
    table = torch.zeros(len(rows), num_classes + 1, dtype=torch.float64)
    for host_batch in evaluation_batches(
        dataset, collate, max_tokens, accelerator.process_index, accelerator.num_processes, rows
    ):
        beat("evaluate")
        batch = host_batch.to(accelerator.device)
        with autocast(accelerator):
            logits = forward(batch)
        if host_batch.is_dummy:
            continue
        at = host_batch.rows_B - rows.start
        table[at, :num_classes] += logits.double().cpu()
        table[at, num_classes] += 1
    beat("reduce")
    table = accelerator.reduce(table.to(accelerator.device), "sum").cpu()
    assert bool((table[:, num_classes] == 1).all()), "a row was evaluated twice or not at all"
    return table[:, :num_classes].numpy()
