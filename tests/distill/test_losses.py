import pytest
import torch

from tinybert_dist.distill import losses


def blocks(length, width, heads=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, heads, length, width, generator=generator, dtype=torch.float64)
    x[1, :, length // 2 :] = 0  # the second sequence is shorter
    return x


@pytest.mark.parametrize("length", [4, 17, 96])
def test_score_free_attention_loss_equals_the_explicit_one(length):
    results = []
    for form in (losses.explicit_attention_loss_sum, losses.gram_attention_loss_sum):
        query, key = blocks(length, 5).requires_grad_(), blocks(length, 5, seed=1).requires_grad_()
        value = form(query, key, blocks(length, 7, seed=2), blocks(length, 7, seed=3))
        results.append((value, *torch.autograd.grad(value, (query, key))))
    for explicit, gram in zip(*results, strict=True):
        assert torch.allclose(explicit, gram, rtol=1e-12, atol=1e-12)


def test_attention_loss_is_chosen_by_size(monkeypatch):
    used = []
    for name in ("explicit_attention_loss_sum", "gram_attention_loss_sum"):
        monkeypatch.setattr(losses, name, lambda *a, name=name: used.append(name))
    for length in (8, 64):
        losses.attention_loss_sum(*(blocks(length, 8) for _ in range(4)))
    assert used == ["explicit_attention_loss_sum", "gram_attention_loss_sum"]


def test_attention_loss_by_hand():
    """One head of width 4, one query, one key: score = q.k / 2."""
    query_s, key_s = torch.full((1, 1, 1, 4), 1.0), torch.full((1, 1, 1, 4), 2.0)
    query_t, key_t = torch.full((1, 1, 1, 4), 3.0), torch.full((1, 1, 1, 4), 1.0)
    assert losses.attention_loss_sum(query_s, key_s, query_t, key_t).item() == pytest.approx((4 - 6) ** 2)


def test_soft_cross_entropy_is_minimal_at_the_teacher():
    teacher = torch.tensor([[2.0, 0.5, -1.0]])
    at_teacher = losses.soft_cross_entropy_sum(teacher, teacher, 2.0)
    for shift in torch.eye(3):
        assert losses.soft_cross_entropy_sum(teacher + shift, teacher, 2.0) > at_teacher


def test_relation_heads_are_the_heads_when_equal_and_a_regrouping_otherwise():
    x = torch.arange(2 * 6 * 5 * 4, dtype=torch.float32).reshape(2, 6, 5, 4)
    assert losses.relation_heads(x, 6) is x
    regrouped = losses.relation_heads(x, 3)
    assert regrouped.shape == (2, 3, 5, 8)
    assert torch.equal(regrouped[:, 0, :, 4:], x[:, 1])  # heads 0 and 1 side by side


def test_choice_of_relation_heads():
    assert losses.choose_relation_heads(12, 312, 12, 768) == 12
    assert losses.choose_relation_heads(4, 128, 6, 384) == 4
    assert losses.choose_relation_heads(6, 384, 16, 1024, wanted=32) == 32
    with pytest.raises(ValueError, match="5 relation heads"):
        losses.choose_relation_heads(4, 128, 6, 384, wanted=5)


def test_written_out_gradients_are_those_of_the_losses():
    student = [blocks(6, 5, seed=i).requires_grad_() for i in (0, 1)]
    teacher = [blocks(6, 7, seed=i) for i in (2, 3)]
    assert torch.autograd.gradcheck(lambda *s: 3 * losses.explicit_attention_loss_sum(*s, *teacher), student)
    hidden = blocks(6, 5, seed=4)
    assert torch.autograd.gradcheck(lambda s: 3 * losses.hidden_loss_sum(s, hidden), student[:1])


def test_losses_keep_one_difference_for_the_backward():
    """The teacher's tensors come from inference mode, and none is kept."""
    length, width = 64, 8
    query, key = (blocks(length, width, seed=i).float().requires_grad_() for i in (0, 1))
    with torch.inference_mode():
        teacher = [blocks(length, width, seed=i).float() for i in (2, 3)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape.numel()) or x, lambda x: x):
        attention = losses.explicit_attention_loss_sum(query, key, *teacher)
        assert sorted(kept) == [query.numel(), key.numel(), 2 * 3 * length * length]
        kept.clear()
        hidden = losses.hidden_loss_sum(query, teacher[0])
        assert kept == [query.numel()]
    (attention + hidden).backward()
    assert query.grad.any() and key.grad.any()


def test_sums_of_many_numbers_are_exact_to_float32():
    """A loss is a sum over millions: adding them one by one would be off by 1e-4."""
    x = torch.rand(32, 12, 128, 128, generator=torch.Generator().manual_seed(0))
    exact = x.double().square().sum().item()
    assert losses.hidden_loss_sum(x, torch.zeros(())).item() == pytest.approx(exact, rel=2e-7)
