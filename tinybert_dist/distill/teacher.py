"""The teacher: evaluation and inference mode, never wrapped, never above the layers that are learned from."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinybert_dist.distill.capture import classify, encode, uses_capture
from tinybert_dist.distill.layer_map import LayerMap
from tinybert_dist.distill.losses import at_least_float32
from tinybert_dist.encoders import truncate_layers
from tinybert_dist.micro_batch import MicroBatch


@dataclass(frozen=True)
class TeacherSignals:
    """What one micro-batch is taught."""

    hidden: dict[int, Tensor]  # by layer, 0 = embeddings; [..., T or S, D]
    attention: dict[int, list[tuple[Tensor, Tensor]]]  # by layer, from 1: (query, key) [B, H, S, K] by group
    logits: Tensor | None  # [B, C] in the student's label order


class Teacher(nn.Module):
    """Computes TeacherSignals. One module, so that what shards it gathers its weights as they are needed.

    Args:
        model: an encoder, or a classification model when logits are needed. It is changed in place.
        layer_map: None when only logits are needed.
        with_logits: keeps all layers and the head.
        label_order: [C] index of the student's class c among the teacher's classes (by label name).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layer_map: LayerMap | None = None,
        with_logits: bool = False,
        label_order: Tensor | None = None,
    ):
        super().__init__()
        model = uses_capture(model)
        self.hidden_layers = {pair.teacher for pair in layer_map.hidden} if layer_map else set()
        self.attention_layers = {pair.teacher for pair in layer_map.layers} if layer_map else set()
        self.with_logits = with_logits
        self.label_order = label_order
        self.forwards = 0  # micro-batches computed, for tests and reports
        self.model: PreTrainedModel = model if with_logits else model.base_model  # type: ignore[assignment]
        if not with_logits:
            truncate_layers(self.model, max(self.hidden_layers, default=0))
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, batch: MicroBatch) -> TeacherSignals:
        """The forward, with whatever gathers weights around it, in inference mode."""
        self.forwards += 1
        return super().__call__(batch)

    def forward(self, batch: MicroBatch) -> TeacherSignals:
        """Signals of one micro-batch."""
        encoded = encode(self.model, batch, {layer - 1 for layer in self.attention_layers})
        logits = None
        if self.with_logits:
            logits = at_least_float32(classify(self.model, batch, encoded.hidden[-1]))
            logits = logits if self.label_order is None else logits[:, self.label_order.to(logits.device)]
        return TeacherSignals(
            hidden={layer: encoded.hidden[layer] for layer in self.hidden_layers},
            attention={layer + 1: blocks for layer, blocks in encoded.attention.items()},
            logits=logits,
        )
