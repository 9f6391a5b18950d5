"""The losses of TinyBERT (arXiv 1909.10351, section 3) as sums; the loop divides by the step's totals.

Shapes: B sequences, S sequence length, H heads, K head width, R relation heads, D hidden width, C classes.
Queries and keys arrive as blocks with zeros where there is no token, so such pairs score 0 on both sides.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Costs: without score matrices S * (Ks + Kt)^2, with them S^2 * (Ks + Kt) plus memory traffic.
# The crossing was measured on a CPU.
GRAM_FROM_LENGTH_PER_WIDTH = 1.75


def attention_loss_sum(query_s: Tensor, key_s: Tensor, query_t: Tensor, key_t: Tensor) -> Tensor:
    """Sum over (head, query, key) of squared differences of the raw scores QK^T / sqrt(K), before softmax.

    Args:
        query_s, key_s: student [B, R, S, Ks]; query_t, key_t: teacher [B, R, S, Kt].
    """
    length, width = query_s.shape[-2], query_s.shape[-1] + query_t.shape[-1]
    chosen = (
        gram_attention_loss_sum
        if length > GRAM_FROM_LENGTH_PER_WIDTH * width
        else explicit_attention_loss_sum
    )
    return chosen(query_s, key_s, query_t, key_t)


def explicit_attention_loss_sum(query_s: Tensor, key_s: Tensor, query_t: Tensor, key_t: Tensor) -> Tensor:
    """attention_loss_sum with score matrices [B, R, S, S]: best for short sequences."""
    return _SquaredScoreDifference.apply(*(x.flatten(0, 1) for x in (query_s, key_s, query_t, key_t)))


def gram_attention_loss_sum(query_s: Tensor, key_s: Tensor, query_t: Tensor, key_t: Tensor) -> Tensor:
    """attention_loss_sum without score matrices: || Q K^T ||_F^2 = sum((Q^T Q) * (K^T K)), memory O(S).

    With Q = [q_s / sqrt(Ks), q_t / sqrt(Kt)] and K = [k_s, -k_t], row q of Q times row k of K is the
    score difference.
    """
    query = torch.cat(
        [query_s / math.sqrt(query_s.shape[-1]), query_t / math.sqrt(query_t.shape[-1])], dim=-1
    )
    key = torch.cat([key_s, -key_t], dim=-1)
    return ((query.mT @ query) * (key.mT @ key)).sum()


def hidden_loss_sum(hidden_s: Tensor, hidden_t: Tensor) -> Tensor:
    """Sum of squared differences of projected student and teacher hidden states [..., D]."""
    return _SquaredDifference.apply(hidden_s, hidden_t)


def soft_cross_entropy_sum(logits_s: Tensor, logits_t: Tensor, temperature: float) -> Tensor:
    """Sum over examples of -softmax(z_t / T) . log_softmax(z_s / T); logits [B, C]. No T^2 factor."""
    target = F.softmax(logits_t / temperature, dim=-1)
    return -(target * F.log_softmax(logits_s / temperature, dim=-1)).sum()


def relation_heads(x_BHSK: Tensor, num_relation_heads: int) -> Tensor:
    """Joins the heads and splits them anew: [B, H, S, K] -> [B, R, S, H * K / R] (arXiv 2012.15828)."""
    batch, heads, length, width = x_BHSK.shape
    if heads == num_relation_heads:
        return x_BHSK
    joined = x_BHSK.transpose(1, 2).reshape(
        batch, length, num_relation_heads, heads * width // num_relation_heads
    )
    return joined.transpose(1, 2)


def choose_relation_heads(
    heads_s: int, width_s: int, heads_t: int, width_t: int, wanted: int | None = None
) -> int:
    """Relation heads R: `wanted`, else the heads if equal, else the largest number that divides both widths.

    Raises ValueError when `wanted` does not divide both hidden widths.
    """
    if wanted is None:
        if heads_s == heads_t:
            return heads_s
        wanted = max(r for r in range(1, min(heads_s, heads_t) + 1) if width_s % r == 0 and width_t % r == 0)
    if wanted < 1 or width_s % wanted or width_t % wanted:
        raise ValueError(
            f"{wanted} relation heads must divide both hidden widths, {width_s} and {width_t}; the "
            f"divisors of {math.gcd(width_s, width_t)} do"
        )
    return wanted


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in {torch.bfloat16, torch.float16} else x


# Written out, both losses pass over their large matrices as seldom as can be: the products are subtracted as
# they are made, and the gradient is a product with the difference, which is all that is kept of them.


class _SquaredScoreDifference(torch.autograd.Function):
    """explicit_attention_loss_sum of [N, S, K]; no gradient to the teacher's."""

    @staticmethod
    def forward(ctx, query_s, key_s, query_t, key_t):
        ctx.scale_s, scale_t = key_s.shape[-1] ** -0.5, key_t.shape[-1] ** -0.5
        scores_NSS = query_t @ key_t.mT
        difference_NSS = scores_NSS.baddbmm_(query_s, key_s.mT, beta=-scale_t, alpha=ctx.scale_s)
        ctx.save_for_backward(difference_NSS, query_s, key_s)
        return _squared_sum(difference_NSS)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        difference_NSS, query_s, key_s = ctx.saved_tensors
        factor = 2 * ctx.scale_s * gradient
        return (difference_NSS @ key_s) * factor, (difference_NSS.mT @ query_s) * factor, None, None


class _SquaredDifference(torch.autograd.Function):
    """hidden_loss_sum; no gradient to the teacher's."""

    @staticmethod
    def forward(ctx, student, teacher):
        difference = student - teacher
        ctx.save_for_backward(difference)
        return _squared_sum(difference)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (difference,) = ctx.saved_tensors
        return difference * (2 * gradient), None


def _squared_sum(x: Tensor) -> Tensor:
    rows = x.flatten(0, -2)
    return torch.linalg.vecdot(rows, rows).sum()
