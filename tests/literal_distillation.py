"""The original's training read literally: every row padded to the maximum length, the whole teacher, every
score matrix and hidden state of every layer kept, one small operation after the other. The yardstick for what
is fast.

Weights are those of transformers' BERT; what is computed with them is written out here. Shapes: B rows,
S maximum length, D width, H heads, C classes.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

MASKED, REALLY_MASKED = -10000.0, -1e2


def features(dataset, rows, max_length):
    """TensorDataset of ids, mask, segments [n, S] and labels [n], padded once and held in memory."""
    ids, mask, segments = np.zeros((3, len(rows), max_length), np.int64)
    samples = dataset.fetch(rows)
    for i, sample in enumerate(samples):
        length = len(sample.input_ids)
        ids[i, :length], mask[i, :length] = sample.input_ids, 1
        segments[i, sample.segment_b : length] = 1
    labels = torch.from_numpy(samples.labels)
    return TensorDataset(*map(torch.from_numpy, (ids, mask, segments)), labels)


def encode(model, ids, mask, segments):
    """Score matrices [B, H, S, S] of every layer, hidden states [B, S, D] from the embeddings on, pooled."""
    bert, heads = model.base_model, model.config.num_attention_heads
    at = torch.arange(ids.shape[1]).unsqueeze(0).expand_as(ids)
    parts = bert.embeddings
    hidden = (
        parts.word_embeddings(ids) + parts.position_embeddings(at) + parts.token_type_embeddings(segments)
    )
    hidden = parts.dropout(parts.LayerNorm(hidden))
    added = (1.0 - mask[:, None, None, :].to(hidden.dtype)) * MASKED
    all_scores, all_hidden = [], [hidden]
    for layer in bert.encoder.layer:
        own = layer.attention.self
        query, key, value = (
            part(hidden).view(*ids.shape, heads, -1).permute(0, 2, 1, 3)
            for part in (own.query, own.key, own.value)
        )
        scores = torch.matmul(query, key.transpose(-1, -2))
        scores = scores / math.sqrt(query.shape[-1])
        scores = scores + added
        context = torch.matmul(own.dropout(scores.softmax(dim=-1)), value)
        attended = _output(layer.attention.output, context.permute(0, 2, 1, 3).reshape(hidden.shape), hidden)
        inner = layer.intermediate.dense(attended)
        inner = inner * 0.5 * (1.0 + torch.erf(inner / math.sqrt(2.0)))
        hidden = _output(layer.output, inner, attended)
        all_scores.append(scores)
        all_hidden.append(hidden)
    pooled = torch.tanh(bert.pooler.dense(hidden[:, 0])) if bert.pooler is not None else None
    return all_scores, all_hidden, pooled


def _output(part, x, residual):
    return part.LayerNorm(part.dropout(part.dense(x)) + residual)


class LiteralAdam:
    """Adam without bias correction, gradients clipped tensor by tensor, one parameter after the other."""

    def __init__(self, modules, learning_rate):
        named = [pair for module in modules for pair in module.named_parameters()]
        self.decayed = [p for name, p in named if not ("bias" in name or "LayerNorm" in name)]
        self.others = [p for name, p in named if "bias" in name or "LayerNorm" in name]
        self.learning_rate, self.moments = learning_rate, {}

    @torch.no_grad()
    def step(self):
        for parameters, decay in ((self.decayed, 0.01), (self.others, 0.0)):
            for p in parameters:
                if p.grad is None:
                    continue
                nn.utils.clip_grad_norm_(p, 1.0)
                if p not in self.moments:
                    self.moments[p] = torch.zeros_like(p), torch.zeros_like(p)
                mean, square = self.moments[p]
                mean.mul_(0.9).add_(p.grad, alpha=0.1)
                square.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                update = mean / (square.sqrt() + 1e-6)
                if decay:
                    update += decay * p
                p.add_(-self.learning_rate * update)

    def zero_grad(self):
        for p in (*self.decayed, *self.others):
            if p.grad is not None:
                p.grad.zero_()


class LiteralDistillation:
    """`teacher`, `student`: BERT base or classification models; `projection`: the fit_dense of the student.

    Both in training mode, as they are left there: the teacher drops out, too.
    """

    def __init__(self, teacher, student, projection, learning_rate=5e-5):
        self.teacher, self.student, self.projection = teacher.train(), student.train(), projection
        self.optimizer = LiteralAdam([student, projection], learning_rate)

    def general_step(self, micro_batches):
        """Attention and hidden loss of one optimizer step; the teacher builds a graph for nothing."""
        return self._step(micro_batches, self._layers_loss, torch.enable_grad)

    def step_1(self, batch):
        """Attention and hidden loss of one optimizer step of the task's first step."""
        return self._step([batch], self._layers_loss, torch.no_grad)

    def step_2(self, batch):
        """Prediction loss of one optimizer step of the task's second step."""
        return self._step([batch], self._prediction_loss, torch.no_grad)

    def _step(self, micro_batches, loss_of, teacher_mode):
        told = []
        for ids, mask, segments, _ in micro_batches:
            student = encode(self.student, ids, mask, segments)
            projected = [self.projection(hidden) for hidden in student[1]]
            with teacher_mode():
                teacher = encode(self.teacher, ids, mask, segments)
            parts = loss_of((student[0], projected, student[2]), teacher)
            (sum(parts) / len(micro_batches)).backward()
            told.append([part.item() for part in parts])
        self.optimizer.step()
        self.optimizer.zero_grad()
        return np.mean(told, axis=0).tolist()

    def _layers_loss(self, student, teacher):
        every = len(teacher[0]) // len(student[0])
        attention = hidden = 0.0
        for ours, theirs in zip(student[0], teacher[0][every - 1 :: every], strict=True):
            pair = (torch.where(x <= REALLY_MASKED, torch.zeros_like(x), x) for x in (ours, theirs.detach()))
            attention = attention + F.mse_loss(*pair)
        for ours, theirs in zip(student[1], teacher[1][::every], strict=True):
            hidden = hidden + F.mse_loss(ours, theirs.detach())
        return attention, hidden

    def _prediction_loss(self, student, teacher):
        ours, theirs = (
            model.classifier(torch.relu(pooled))
            for model, pooled in ((self.student, student[2]), (self.teacher, teacher[2]))
        )
        return ((-F.softmax(theirs.detach(), dim=-1) * F.log_softmax(ours, dim=-1)).mean(),)


@torch.no_grad()
def evaluate(model, dataset, batch_size):
    """Logits [n, C] in batches of rows as they come, with the loss that is reported."""
    model.eval()
    logits, losses = [], []
    for ids, mask, segments, labels in DataLoader(dataset, batch_size=batch_size):
        logits.append(model.classifier(torch.relu(encode(model, ids, mask, segments)[2])))
        losses.append(F.cross_entropy(logits[-1], labels.long()).item())
    return torch.cat(logits).numpy()
