"""What is counted and what is not, on operations of torch itself."""

import pytest
import torch
from torch import nn

from tinybert_dist.benchmark.counters import Counting

WAITS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "truth": lambda x: bool(x.any()),
    "branch": lambda x: 1 if x[0] > 0 else 2,
    "place in a list": lambda x: [1, 2, 3][x[1].long()],
    "text": lambda x: f"{x[0]:.1f}",
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 1),
    "picked by a mask": lambda x: x[x > 1],
    "set by a mask": lambda x: x.clone().__setitem__(x > 1, torch.ones(2)),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "fill with a value of the device": lambda x: torch.full((2,), x[0]),
}
WAITS_NOT = {
    "picked by numbers": lambda x: x[torch.tensor([0, 1])],
    "index_select": lambda x: x.index_select(0, torch.tensor([1])),
    "masked_fill": lambda x: x.masked_fill(x > 1, 0.0),
    "shape": lambda x: x.numel() + x.shape[0],
    "clamp": lambda x: x.clamp(min=1).isfinite().all(),
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize(
    ("what", "reads"), [(what, 1) for what in WAITS] + [(what, 0) for what in WAITS_NOT], ids=str
)
def test_host_reads(what, reads):
    with Counting() as counting:
        (WAITS | WAITS_NOT)[what](torch.arange(4.0))
    assert counting.totals()["host_reads"] == reads


def test_reads_inside_a_backward_are_seen():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x * 2

        @staticmethod
        def backward(context, gradient):
            return gradient * gradient.sum().item()

    with Counting() as counting:
        Reads.apply(torch.ones(3, requires_grad=True)).sum().backward()
    assert counting.totals()["host_reads"] == 1


def test_saved_bytes_are_distinct_storages_without_parameters_and_the_most_at_a_time():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with Counting() as counting:
        for _ in range(2):  # one after the other: no more than one of them at a time
            # input, ReLU's output (its own and the next layer's), the output that is squared
            model(torch.randn(8, 4)).pow(2).sum().backward()
    assert counting.totals()["saved_bytes"] == 3 * 8 * 4 * 4
    with Counting() as both:
        losses = [model(torch.randn(8, 4)).pow(2).sum() for _ in range(2)]
        sum(losses).backward()
    assert both.totals()["saved_bytes"] == 2 * 3 * 8 * 4 * 4


def test_what_is_compiled_again_is_counted():
    def run(rows):
        compiled(torch.randn(rows, 4)).sum().backward()

    compiled = torch.compile(nn.Linear(4, 4), backend="aot_eager", dynamic=False)
    with Counting() as first:
        run(8)
        run(8)
    run(8)  # without: entering and leaving must not compile anything by itself
    with Counting() as same:
        run(8)
    with Counting() as others:
        run(9)
        run(10)
    graphs = [counting.totals()["recompilations"] for counting in (first, same, others)]
    assert graphs == [1, 0, 2]


def test_it_leaves_no_trace():
    before = torch.Tensor.tolist, torch.Tensor.cpu
    with Counting() as counting:
        torch.arange(3).tolist()
    assert (torch.Tensor.tolist, torch.Tensor.cpu) == before and "tolist" not in vars(torch.Tensor)
    torch.arange(3).tolist()
    assert counting.totals()["host_reads"] == 1
