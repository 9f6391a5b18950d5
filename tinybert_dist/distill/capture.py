"""Runs encoders whose attention goes through transformers' attention interface, for what distillation needs.

One registered attention function does two things SDPA alone does not: it computes packed rows without padding
in the linear layers, and it hands out queries and keys of chosen layers. No model code is touched.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tinybert_dist.distill.losses import at_least_float32
from tinybert_dist.encoders import first_position
from tinybert_dist.micro_batch import MicroBatch

ATTENTION = "tinybert_dist"


class Sink:
    """Receives (query, key) blocks [B, H, S, K] of the wanted layers (0-based), one pair for each group.

    Neither dict nor dataclass: FSDP2 copies those among the arguments, and captures would be lost. Layers are
    counted as they come: not every family numbers them.
    """

    def __init__(self, layers: Collection[int]):
        self.layers, self.num_layers = layers, 0
        self.blocks: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def put(self, queries: list[Tensor], keys: list[Tensor]) -> None:
        """Of the next layer."""
        if self.num_layers in self.layers:
            self.blocks[self.num_layers] = list(zip(queries, keys, strict=True))
        self.num_layers += 1


def attention(module, query, key, value, attention_mask, *, micro_batch=None, sink=None, **kwargs):
    """SDPA over [B, H, S, K], or over a packed row [1, H, T, K] when `micro_batch` is packed."""
    packed = micro_batch is not None and micro_batch.is_packed
    queries, keys, values = (micro_batch.to_blocks(x) if packed else [x] for x in (query, key, value))
    if sink is not None:
        sink.put(queries, keys)
    if not packed:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    outputs = [
        _attend(*blocks, dropout=kwargs.get("dropout", 0.0), scale=kwargs.get("scaling"))
        for blocks in zip(queries, keys, values, micro_batch.block_masks, strict=True)
    ]
    return micro_batch.to_row(outputs), None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale) -> Tensor:
    on_cpu = query.device.type == "cpu"
    if not (on_cpu and (dropout or (query.requires_grad and query.dtype == torch.bfloat16))):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale
        )
    # CPUs have no fused kernel with dropout: what SDPA does instead takes 1.1 to 1.2 times as long. In
    # float32, since for bf16 products of every new shape a kernel is made: 17 instead of 26 k tokens/s
    with torch.autocast("cpu", enabled=False):
        q, k, v = (at_least_float32(x) for x in (query, key, value))
        scores = q @ (k.mT * (k.shape[-1] ** -0.5 if scale is None else scale))
        if mask is not None:
            scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
        return (F.dropout(F.softmax(scores, dim=-1), dropout) @ v).to(query.dtype)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # without it padding would be attended to, silently


@dataclass(frozen=True)
class Encoded:
    """Hidden states (embeddings first) [..., T or S, D]; (query, key) of each group by 0-based layer."""

    hidden: tuple[Tensor, ...]
    attention: dict[int, list[tuple[Tensor, Tensor]]]


def encode(model: PreTrainedModel, batch: MicroBatch, attention_layers: Collection[int] = ()) -> Encoded:
    """Runs the encoder of `model` (a base model or one with a head) on packed or padded sequences."""
    base = model.base_model
    assert isinstance(base, PreTrainedModel)
    config = base.config
    positions = batch.position_ids
    if positions is not None and (first := first_position(config)):
        positions = positions + first
    segments = batch.token_type_ids
    if getattr(config, "type_vocab_size", 0) < 2:
        segments = torch.zeros_like(segments)
    sink = Sink(attention_layers)
    output = base(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_type_ids=segments,
        position_ids=positions,
        output_hidden_states=True,
        micro_batch=batch,
        sink=sink,
    )
    missing = set(attention_layers) - set(sink.blocks)
    assert not missing, f"attention of layers {sorted(missing)} was not captured from {type(base).__name__}"
    return Encoded(output.hidden_states, sink.blocks)


def classify(model: PreTrainedModel, batch: MicroBatch, hidden: Tensor) -> Tensor:
    """Logits [B, C] of a sequence-classification model from its last hidden state."""
    first_B1D = hidden.flatten(0, 1).index_select(0, batch.starts_B).unsqueeze(1)
    if (before := getattr(model, "pre_classifier", None)) is not None:  # DistilBERT
        pooled_BD = F.relu(before(first_B1D.squeeze(1)))
        return model.get_submodule("classifier")(model.get_submodule("dropout")(pooled_BD))
    pooler = getattr(model.base_model, "pooler", None)
    if pooler is None:  # RoBERTa, ELECTRA: the head itself takes the first token
        return model.get_submodule("classifier")(first_B1D)
    dropout, classifier = model.get_submodule("dropout"), model.get_submodule("classifier")
    return classifier(dropout(pooler(first_B1D)))


def uses_capture(model: PreTrainedModel) -> PreTrainedModel:
    """Switches a model to the attention function above; returns it."""
    model.set_attn_implementation(ATTENTION)
    return model


@torch.inference_mode()
def can_pack(model: PreTrainedModel, collate_packed, collate_padded, samples) -> bool:
    """Probes whether `model` gives the same hidden states packed and padded; a family is not assumed to."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        padded = collate_padded(samples).to(device)
        real = padded.attention_mask.bool()
        expected = encode(model, padded).hidden[-1][real]
        actual = encode(model, collate_packed(samples).to(device)).hidden[-1][0]
        tolerance = 1e-3 if expected.dtype in {torch.float32, torch.float64} else 5e-2
        # NaN weights are the finite gate's to report, not a matter of packing
        return torch.allclose(expected, actual, rtol=0, atol=tolerance, equal_nan=True)
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return False  # it does not take position ids, or its attention does not go through the interface
    finally:
        model.train(was_training)


@torch.inference_mode()
def require_understood(model: PreTrainedModel, padded: MicroBatch) -> None:
    """Raises ValueError for a family with another attention or a head that `classify` does not know."""
    kind, was_training = type(model).__name__, model.training
    model.eval()
    # one segment, which is what a model takes when it is told none
    batch = replace(padded, token_type_ids=torch.zeros_like(padded.token_type_ids))
    batch = batch.to(next(model.parameters()).device)
    try:
        hidden = encode(model, batch, range(model.config.num_hidden_layers)).hidden[-1]
        if (head := getattr(model, "classifier", None)) is not None:
            own = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            read = classify(model, batch, hidden)
            equal = own.shape == read.shape and torch.allclose(own, read, rtol=0, atol=1e-3, equal_nan=True)
            assert equal, f"its head is not of a known kind ({type(head).__name__})"
    except (TypeError, RuntimeError, ValueError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"{kind} cannot be used: {error}. Give BERT, RoBERTa, ELECTRA, DistilBERT or kin"
        ) from error
    finally:
        model.train(was_training)


def masked_lm_head(model: PreTrainedModel) -> nn.Module:
    """The head of a masked language model: hidden states [..., D] -> logits [..., V].

    Raises ValueError for an architecture whose head is not one module.
    """
    heads = [child for name, child in model.named_children() if name != model.base_model_prefix]
    if len(heads) != 1:
        raise ValueError(
            f"the masked-LM head of {type(model).__name__} is not one module; use a BERT or RoBERTa config"
        )
    return heads[0]
