"""What is trained, each as one module that is wrapped as a whole and called through its wrapper.

A module's forward returns loss *sums* by term; `counts` gives their denominators for one micro-batch, by
group (the part of a term's name before the slash), and `term_weights` how the terms add up to the loss:

    loss = sum over terms of weight[term] * sum[term] / (total count[group] over the whole optimizer step)
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinybert_dist.distill import losses
from tinybert_dist.distill.capture import classify, encode, uses_capture
from tinybert_dist.distill.layer_map import LayerMap
from tinybert_dist.distill.teacher import TeacherSignals
from tinybert_dist.micro_batch import MicroBatch

KEY_BIAS = re.compile(r"\.(\d+)\.(?:.*\.)?(?:key|k_lin|k_proj)\.bias$")
LossSums = dict[str, Tensor]
Counts = dict[str, float]


class LossModule(nn.Module):
    """A model with the losses it is trained with. `model` is what is saved for users."""

    model: PreTrainedModel
    term_weights: dict[str, float]
    score_layers: frozenset[int] = frozenset()  # layers, from 1, whose attention scores are in the loss
    keeps_outputs_in_graph = False  # see Distiller.forward

    def counts(self, batch: MicroBatch) -> Counts:
        """Denominators this micro-batch adds, by loss group; plain numbers, known without the device."""
        raise TypeError(f"{type(self).__name__} must define counts")

    def freeze_unreached(self, sums: LossSums) -> tuple[list[str], list[str]]:
        """Freezes parameters the losses do not reach; names of those, and of those with a gradient.

        Unused heads: plain DDP waits for ever for a gradient that never comes, and weight decay would move
        them. Key biases of layers whose scores are not learned: softmax does not see them, their gradient is
        rounding noise, and Adam would make full steps of it, different ones under every strategy.
        """
        for parameter in self.parameters():
            parameter.grad = None
        sum(sums.values(), start=torch.zeros(())).backward()
        frozen = [
            name
            for name, p in self.named_parameters()
            if p.requires_grad and (p.grad is None or self._is_unseen_key_bias(name))
        ]
        reached = [
            n for n, p in self.named_parameters() if n not in frozen and p.grad is not None and p.grad.any()
        ]
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in frozen)
            parameter.grad = None
        return frozen, reached

    def _is_unseen_key_bias(self, name: str) -> bool:
        match = KEY_BIAS.search(name)
        return match is not None and int(match.group(1)) + 1 not in self.score_layers


@dataclass(frozen=True)
class DistillWeights:
    """Weight of each loss; 0 switches it off. The paper weighs all alike."""

    attention: float = 1.0
    hidden: float = 1.0
    embedding: float = 1.0
    prediction: float = 0.0


class Distiller(LossModule):
    """Student + projections, trained on attention scores, hidden states and logits of a teacher.

    Args:
        student: base model, or classification model when `weights.prediction` is on.
        teacher_config: widths and heads of the teacher.
        layer_map: None for prediction only.
        per_layer_projections: one projection for each hidden pair instead of one shared by all.
        regression: the prediction loss is the squared error to the teacher's logits.
        reference_averaging: denominators that include padding and classes; needs the "fixed" layout.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher_config,
        layer_map: LayerMap | None,
        weights: DistillWeights,
        *,
        temperature: float = 1.0,
        regression: bool = False,
        per_layer_projections: bool = False,
        num_relation_heads: int | None = None,
        reference_averaging: bool = False,
    ):
        super().__init__()
        self.model = uses_capture(student)
        self.weights, self.temperature, self.regression = weights, temperature, regression
        self.reference_averaging = reference_averaging
        config = student.config
        self.teacher_width = teacher_config.hidden_size
        self.num_relation_heads = losses.choose_relation_heads(
            config.num_attention_heads,
            config.hidden_size,
            teacher_config.num_attention_heads,
            self.teacher_width,
            num_relation_heads,
        )
        self.attention_pairs = layer_map.layers if layer_map and weights.attention else ()
        self.score_layers = frozenset(pair.student for pair in self.attention_pairs)
        pairs = layer_map.hidden if layer_map else ()
        self.hidden_pairs = tuple(p for p in pairs if (weights.hidden if p.student else weights.embedding))
        self.term_weights = {
            f"attention/{p.name}": weights.attention * p.weight for p in self.attention_pairs
        } | {
            f"hidden/{p.name}": (weights.hidden if p.student else weights.embedding) * p.weight
            for p in self.hidden_pairs
        }
        if weights.prediction:
            self.term_weights["prediction"] = weights.prediction
        # one per student layer and the embeddings, also under a map that leaves layers out: names stay theirs
        count = (config.num_hidden_layers + 1 if per_layer_projections else 1) if self.hidden_pairs else 0
        projections = [nn.Linear(config.hidden_size, self.teacher_width) for _ in range(count)]
        for projection in projections:
            nn.init.normal_(projection.weight, std=config.initializer_range)
            nn.init.zeros_(projection.bias)
        self.projections = nn.ModuleList(projections)

    def counts(self, batch: MicroBatch) -> Counts:
        """See LossModule: real (query, key) pairs x heads, real tokens x width, examples."""
        tokens, pairs, examples = batch.num_tokens, batch.num_pairs, batch.num_sequences
        if self.reference_averaging:
            tokens = examples * batch.max_length
            pairs = tokens * batch.max_length
            examples *= getattr(self.model.config, "num_labels", 1)
        return {
            "attention": pairs * self.num_relation_heads,
            "hidden": tokens * self.teacher_width,
            "prediction": examples,
        }

    def forward(self, batch: MicroBatch, signals: TeacherSignals) -> LossSums:
        """Loss sums by term: attention/layer_m, hidden/embeddings, hidden/layer_m, prediction."""
        encoded = encode(self.model, batch, {pair.student - 1 for pair in self.attention_pairs})
        logits = classify(self.model, batch, encoded.hidden[-1]) if self.weights.prediction else None
        # differences of close numbers: never in half precision
        with torch.autocast(batch.input_ids.device.type, enabled=False):
            sums = self._attention_sums(batch, encoded.attention, signals.attention)
            sums |= self._hidden_sums(batch, encoded.hidden, signals.hidden)
            if self.keeps_outputs_in_graph and self._top_score_layer():
                # FSDP2 gathers a layer's weights again when the gradient reaches its output; scores alone
                # come from inside the layer
                sums = {t: s + 0.0 * encoded.hidden[self._top_score_layer()].sum() for t, s in sums.items()}
            if logits is not None:
                assert signals.logits is not None, "targets without logits"
                sums["prediction"] = self._prediction_sum(
                    losses.at_least_float32(logits), losses.at_least_float32(signals.logits)
                )
        return sums

    def _top_score_layer(self) -> int:
        """The highest layer whose scores are learned if no output from there on is, else 0."""
        top = max(self.score_layers, default=0)
        return top if top > max((pair.student for pair in self.hidden_pairs), default=0) else 0

    def _attention_sums(self, batch: MicroBatch, student: dict, teacher: dict) -> LossSums:
        sums = {}
        for pair in self.attention_pairs:
            groups = zip(student[pair.student - 1], teacher[pair.teacher], strict=True)
            parts = [self._attention_sum(batch, *blocks) for blocks in groups]
            sums[f"attention/{pair.name}"] = torch.stack(parts).sum()
        return sums

    def _attention_sum(self, batch: MicroBatch, student: tuple, teacher: tuple) -> Tensor:
        """Of one group's (query, key) blocks."""
        blocks = [
            losses.relation_heads(losses.at_least_float32(x), self.num_relation_heads)
            for x in (*student, *teacher)
        ]
        if batch.attention_mask is not None:  # padded
            # masked keys score 0 on both sides; the reference keeps the differences of padded query rows
            mask_B1S1 = batch.attention_mask[:, None, :, None].to(blocks[0].dtype)
            query_mask = 1 if self.reference_averaging else mask_B1S1
            blocks = [x * (query_mask if i % 2 == 0 else mask_B1S1) for i, x in enumerate(blocks)]
        return losses.attention_loss_sum(*blocks)

    def _hidden_sums(self, batch: MicroBatch, student: tuple, teacher: dict) -> LossSums:
        sums = {}
        for pair in self.hidden_pairs:
            projection = self.projections[pair.student if len(self.projections) > 1 else 0]
            difference = [
                projection(losses.at_least_float32(student[pair.student])),
                losses.at_least_float32(teacher[pair.teacher]),
            ]
            if batch.attention_mask is not None and not self.reference_averaging:  # padded
                difference = [x * batch.attention_mask.unsqueeze(-1) for x in difference]
            sums[f"hidden/{pair.name}"] = losses.hidden_loss_sum(*difference)
        return sums

    def _prediction_sum(self, logits_s: Tensor, logits_t: Tensor) -> Tensor:
        if self.regression:
            return losses.hidden_loss_sum(logits_s, logits_t)
        return losses.soft_cross_entropy_sum(logits_s, logits_t, self.temperature)


class Classifier(LossModule):
    """A classification or regression model trained on labels."""

    def __init__(self, model: PreTrainedModel, regression: bool):
        super().__init__()
        self.model, self.regression = uses_capture(model), regression
        self.term_weights = {"label": 1.0}

    def counts(self, batch: MicroBatch) -> Counts:
        """See LossModule: examples."""
        return {"label": batch.num_sequences}

    def forward(self, batch: MicroBatch, signals: None = None) -> LossSums:
        """Sum of cross-entropies, or of squared errors for regression."""
        logits = losses.at_least_float32(classify(self.model, batch, encode(self.model, batch).hidden[-1]))
        if self.regression:
            return {"label": ((logits[:, 0] - batch.labels_B.to(logits.dtype)) ** 2).sum()}
        return {"label": F.cross_entropy(logits, batch.labels_B.long(), reduction="sum")}


class MaskedLanguageModel(LossModule):
    """A masked language model; the head runs on masked tokens only."""

    def __init__(self, model: PreTrainedModel, head: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model = uses_capture(model)
        self.term_weights = {"masked_lm": 1.0}
        self._head = [head]  # in a list: not a second registration of the model's own submodule

    def counts(self, batch: MicroBatch) -> Counts:
        """See LossModule: masked tokens."""
        return {"masked_lm": batch.num_token_labels}

    def forward(self, batch: MicroBatch, signals: None = None) -> LossSums:
        """Sum of cross-entropies over the masked tokens."""
        hidden_ND = encode(self.model, batch).hidden[-1].flatten(0, 1)
        assert batch.token_labels is not None, "a micro-batch without masked tokens"
        labels_N = batch.token_labels.flatten()
        masked = (labels_N != -100).nonzero().squeeze(1)
        logits_MV = losses.at_least_float32(self._head[0](hidden_ND.index_select(0, masked)))
        return {"masked_lm": F.cross_entropy(logits_MV, labels_N[masked], reduction="sum")}
