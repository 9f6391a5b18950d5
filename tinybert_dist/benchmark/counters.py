"""What training makes the machine do, counted: exact where seconds are noise.

    with Counting() as counting:
        ...steps...
    counting.totals()

A host read is whatever makes the host wait for the device: a value looked at, a shape that depends on values,
a copy between host and device that is not told to overlap. CPUs never wait: there it is what a GPU would wait
for, and only copies are not seen. `Tensor.numpy()` is none: only what lies on the host has it.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters as dynamo_counters
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tinybert_dist.distill.teacher import Teacher
from tinybert_dist.training.window import Window

NEEDS_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}  # by a mask: its values decide how many
COPIES = {"aten::_to_copy", "aten::copy_"}
COLLECTIVES = ("c10d::", "_c10d_functional::")


class Counting:
    """Counts while it is entered, in this process. It slows every operation down: not for timing.

    recompilations: graphs torch.compile made meanwhile, so begin after the first step. saved_bytes: the most
    that autograd kept at a time for backwards, parameters excluded. collective_bytes: of the larger of what
    a process puts in and takes out. operations: what reached torch's dispatcher. steps, tokens and
    padded_tokens: of the training loop, over all processes.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._kept = _Kept()
        self._entered = ExitStack()

    def __enter__(self) -> "Counting":
        enter, replace = self._entered.enter_context, partial(_replaced, self._entered)
        # reads of a CPU's tensors that reach no operator; a GPU's do
        replace(Tensor, "tolist", self._counted("host_reads", lambda tensor: tensor.device.type == "cpu"))
        replace(Tensor, "cpu", self._counted("host_reads", lambda tensor: tensor.device.type == "cpu"))
        replace(Teacher, "__call__", self._counted("teacher_forwards", lambda teacher: True))
        replace(Window, "add", self._add_step)
        enter(torch.autograd.graph.saved_tensors_hooks(self._kept.keep, lambda kept: kept.tensor))
        enter(_Operations(self._counts))
        self._counts["recompilations"] -= _num_graphs()
        return self

    def __exit__(self, *exception: object) -> None:
        self._counts["recompilations"] += _num_graphs()
        self._entered.close()

    def totals(self) -> dict[str, float]:
        """Counts by name, once left."""
        names = (
            *("host_reads", "collectives", "collective_bytes", "recompilations", "saved_bytes"),
            *("teacher_forwards", "tokens", "padded_tokens", "operations", "steps"),
        )
        return {name: float((self._counts | {"saved_bytes": self._kept.most}).get(name, 0)) for name in names}

    def _counted(self, name: str, counts: Callable[[Any], bool]) -> Callable[[Callable], Callable]:
        def wrap(original: Callable) -> Callable:
            @wraps(original)
            def call(this: Any, *arguments: Any, **options: Any) -> Any:
                self._counts[name] += counts(this)
                return original(this, *arguments, **options)

            return call

        return wrap

    def _add_step(self, original: Callable) -> Callable:
        def add(window: Window, losses: dict, grad_norm: float, counts: dict[str, float]) -> None:
            self._counts["steps"] += 1
            self._counts["tokens"] += int(counts["tokens"])
            self._counts["padded_tokens"] += int(counts["computed"])
            original(window, losses, grad_norm, counts)

        return add


class _Operations(TorchDispatchMode):
    """Sees every operator, in backward too, and the collectives DDP starts by itself."""

    def __init__(self, counts: Counter[str]):
        super().__init__()
        self._counts = counts

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # without it nothing is compiled meanwhile

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes again as what is done to the shards, with their collectives
        kwargs = kwargs or {}
        name = operator.name().partition(".")[0]
        self._counts["operations"] += 1
        self._counts["host_reads"] += _waits(operator, name, args, kwargs)
        result = operator(*args, **kwargs)
        if name.startswith(COLLECTIVES) and "wait_tensor" not in name:
            self._counts["collectives"] += 1
            self._counts["collective_bytes"] += max(map(_num_bytes, (*args, result)), default=0)
        return result


class _Kept:
    """What autograd keeps for backwards: distinct storages, each counted once."""

    class Handle:
        """Lives as long as autograd keeps the tensor."""

        def __init__(self, kept: "_Kept", tensor: Tensor):
            self._kept, self.tensor = kept, tensor
            kept.count(tensor, +1)

        def __del__(self) -> None:
            self._kept.count(self.tensor, -1)

    def __init__(self) -> None:
        self.now = self.most = 0
        self._times: Counter[int] = Counter()

    def keep(self, tensor: Tensor) -> "_Kept.Handle":
        """Called with each tensor that is saved."""
        return self.Handle(self, tensor)

    def count(self, tensor: Tensor, change: int) -> None:
        """It is saved once more, or once less."""
        if isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            return  # it is there anyway
        storage = tensor.untyped_storage()
        before = self._times[storage.data_ptr()]
        self._times[storage.data_ptr()] += change
        if {before, before + change} == {0, 1}:
            self.now += change * storage.nbytes()
            self.most = max(self.most, self.now)


def _waits(operator: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> bool:
    if name in INDEXING:
        return any(t is not None and t.dtype in {torch.bool, torch.uint8} for t in args[1])
    if name in COPIES:
        source = args[0] if name == "aten::_to_copy" else args[1]
        target = kwargs.get("device") or args[0].device
        overlaps = kwargs.get("non_blocking") or (name == "aten::copy_" and args[2:3] == (True,))
        return torch.device(target).type != source.device.type and not overlaps
    return not NEEDS_VALUES.isdisjoint(operator.tags)


def _num_bytes(value: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _num_graphs() -> int:
    return dynamo_counters["stats"]["unique_graphs"]


def _replaced(until: ExitStack, owner: type, name: str, wrap: Callable[[Callable], Callable]) -> None:
    had = name in vars(owner)
    original = getattr(owner, name)
    setattr(owner, name, wrap(original))
    until.callback(lambda: setattr(owner, name, original) if had else delattr(owner, name))
