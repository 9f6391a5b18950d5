"""Logits of a masked language model at the masked places alone, for queries of several lengths at once.

Shapes: G groups (queries of one length), N queries of a group, S tokens of a query, W masks of a query,
T tokens of the batch, R masks of the batch, D width, H heads, K head width, V vocabulary.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tinybert_dist.encoders import first_position, layer_stacks

ATTENTION = "tinybert_dist_queries"
# what a layer must be made of to be computed for the masked rows alone: BERT, RoBERTa, ELECTRA and kin
LAST_LAYER_PARTS = {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output"}
PROBE_LENGTHS = (5, 5, 8)


class Query(NamedTuple):
    """`[CLS] sentence with masks [SEP] unmasked sentence [SEP]`: `width` masks stand at `position`."""

    input_ids: list[int]
    second_at: int
    position: int
    width: int
    whole_word: bool

    @property
    def kind(self) -> tuple[int, int, bool]:
        """Queries of one kind stand side by side in a batch."""
        return len(self.input_ids), self.width, self.whole_word


class Span(NamedTuple):
    """Rows [start, start + num * size) of a batch: `num` queries with `size` rows each."""

    start: int
    num: int
    size: int

    def blocks(self, x_1HTK: Tensor) -> Tensor:
        """Its part of a row as [N, H, S, K], without a copy."""
        _, heads, _, width = x_1HTK.shape
        part = x_1HTK[0].transpose(0, 1)[self.start : self.start + self.num * self.size]
        return part.view(self.num, self.size, heads, width).transpose(1, 2)


@dataclass(frozen=True)
class QueryBatch:
    """Queries one after the other in one row of tokens; those of one kind make a group."""

    input_ids_T: Tensor
    token_type_ids_T: Tensor
    position_ids_T: Tensor
    places_R: Tensor  # where the masks stand in the row
    tokens: tuple[Span, ...]  # per group, in the row
    masks: tuple[Span, ...]  # per group, among the masks


def attend(
    query_1HTK: Tensor, key: Tensor, value: Tensor, rows: Sequence[Span], batch: QueryBatch, scale: float
) -> Tensor:
    """Attention within every query of the batch, [1, T or R, H, K]; `rows`: which of each group ask."""
    outputs = [
        F.scaled_dot_product_attention(
            asking.blocks(query_1HTK), tokens.blocks(key), tokens.blocks(value), scale=scale
        )
        for asking, tokens in zip(rows, batch.tokens, strict=True)
    ]
    return torch.cat([output.transpose(1, 2).flatten(0, 1) for output in outputs]).unsqueeze(0)


def attention(module, query, key, value, attention_mask, *, queries=None, scaling=None, **kwargs):
    """What transformers calls: attention within each query when a batch is given, else plain SDPA."""
    if queries is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return attend(query, key, value, queries.tokens, queries, scaling), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class LastLayer(nn.Module):
    """The last encoder layer at the masked places only: nothing reads its other rows."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, *arguments, queries: QueryBatch | None = None, **kwargs):
        """Hidden states of all tokens in; of all tokens out, or [1, R, D] when a batch is given."""
        if queries is None:
            return self.layer(hidden_states, *arguments, **kwargs)
        layer: Any = self.layer
        attention = layer.attention
        rows_1RD = hidden_states[:, queries.places_R]

        def heads(projection: nn.Module, x: Tensor) -> Tensor:
            return projection(x).unflatten(-1, (-1, attention.self.attention_head_size)).transpose(1, 2)

        mixed_1RHK = attend(
            heads(attention.self.query, rows_1RD),
            heads(attention.self.key, hidden_states),
            heads(attention.self.value, hidden_states),
            queries.masks,
            queries,
            attention.self.scaling,
        )
        attended_1RD = attention.output(mixed_1RHK.flatten(2), rows_1RD)
        return layer.feed_forward_chunk(attended_1RD)


class MaskedLogits:
    """A masked language model that is asked for its logits at the masks, and for nothing else.

    `packs`: queries of several lengths share a forward without padding, and the last layer runs on the masks
    only. Whether a family can is found out by a probe; the others take batches of one length.
    """

    def __init__(
        self, model: PreTrainedModel, types: tuple[int, int] | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        """`types`: segment numbers of the two sentences, None for a model without; `dtype`: the encoder's."""
        self._types, self._device = types, device
        self._model = model.eval().requires_grad_(False).to(device)
        self._first_position = first_position(model.config)
        self.packs = self._can_pack()
        _convert_encoder(self._model, dtype)

    @torch.inference_mode()
    def at_masks(self, queries: Sequence[Query]) -> list[Tensor]:
        """Logits [N, W, V] per group of `queries`, which stand sorted by kind (of one kind unless packs)."""
        batch = self._batch(queries)
        shape = (1, -1) if self.packs else (len(queries), -1)
        inputs: dict[str, Any] = {"input_ids": batch.input_ids_T.view(shape)}
        if self._types is not None:
            inputs["token_type_ids"] = batch.token_type_ids_T.view(shape)
        if self.packs:
            inputs |= {"position_ids": batch.position_ids_T.view(shape), "queries": batch}
        logits_1RV = logits_at(self._model, inputs, None if self.packs else batch.places_R)
        return [
            logits_1RV[0, span.start : span.start + span.num * span.size].unflatten(0, (span.num, span.size))
            for span in batch.masks
        ]

    @contextlib.contextmanager
    def in_double(self) -> Iterator[None]:
        """Inside, the model computes in float64. The way there and back loses no bit of float32 weights."""
        self._model.double()
        try:
            yield
        finally:
            self._model.float()

    def _batch(self, queries: Sequence[Query]) -> QueryBatch:
        ids: list[int] = []
        segments: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        groups: dict[tuple[int, int, bool], int] = {}
        first, second = self._types or (0, 0)
        for query in queries:
            length = len(query.input_ids)
            start = len(ids) + query.position
            places += range(start, start + query.width)
            ids += query.input_ids
            segments += [first] * query.second_at + [second] * (length - query.second_at)
            positions += range(self._first_position, self._first_position + length)
            groups[query.kind] = groups.get(query.kind, 0) + 1
        tokens: list[Span] = []
        masks: list[Span] = []
        num_tokens = num_masks = 0
        for (length, width, _), num in groups.items():
            tokens.append(Span(num_tokens, num, length))
            masks.append(Span(num_masks, num, width))
            num_tokens, num_masks = num_tokens + num * length, num_masks + num * width
        ids_T, segments_T, positions_T = torch.tensor([ids, segments, positions], device=self._device)
        places_R = torch.tensor(places, device=self._device)
        return QueryBatch(ids_T, segments_T, positions_T, places_R, tuple(tokens), tuple(masks))

    def _can_pack(self) -> bool:
        vocabulary = self._model.config.vocab_size
        probe = [
            Query([(7 * i + 3 * n) % vocabulary for i in range(length)], 3, 1 + n, 1, False)
            for n, length in enumerate(PROBE_LENGTHS)
        ]
        self.packs = False
        expected_NV = torch.cat([self.at_masks([query])[0] for query in probe])
        usual, stacks = self._model.config._attn_implementation, layer_stacks(self._model)
        if len(stacks) != 1:
            return False
        layers = getattr(*stacks[0])
        last = layers[-1]
        whole = last.layer if isinstance(last, LastLayer) else last
        if not dict(whole.named_modules()).keys() >= LAST_LAYER_PARTS:
            return False
        layers[-1] = LastLayer(whole)
        try:
            self._model.set_attn_implementation(ATTENTION)
            self.packs = True
            # a wrong mask or position moves logits by far more; NaN weights are not a matter of packing
            atol = 1e-3 * expected_NV.abs().max().item()
            if torch.allclose(torch.cat(self.at_masks(probe)), expected_NV, 0, atol, equal_nan=True):
                return True
        except (TypeError, RuntimeError, ValueError, AttributeError):
            pass  # it takes no position ids, or its attention does not go through the interface
        layers[-1] = last
        self._model.set_attn_implementation(usual)
        return False


def logits_at(model: PreTrainedModel, inputs: dict[str, Any], places_R: Tensor | None) -> Tensor:
    """Logits [1, R, V] of a masked LM at `places_R` of its flattened tokens: its own head runs on those only.

    Works for every model whose head maps the base model's first output position by position (BERT, RoBERTa,
    ELECTRA, DistilBERT, ALBERT ...); at S = 50 the full head would do 50 times the work. None: what the
    base model gives out are the rows wanted.
    """

    def gather(_module, _arguments, output):
        hidden = output[0] if places_R is None else output[0].flatten(0, 1)[places_R].unsqueeze(0)
        output["last_hidden_state"] = hidden.to(head_dtype)
        return output

    head_dtype = model.get_output_embeddings().weight.dtype
    hook = model.base_model.register_forward_hook(gather)
    try:
        return model(**inputs, return_dict=True).logits
    finally:
        hook.remove()


def _convert_encoder(model: PreTrainedModel, dtype: torch.dtype) -> None:
    decoder = model.get_output_embeddings()
    # the decoder shares its weight with the input embeddings, which are converted
    weight = decoder.weight.detach().clone() if decoder.weight.dtype != dtype else None
    model.base_model.to(dtype)
    if weight is not None:
        decoder.weight = nn.Parameter(weight, requires_grad=False)
