"""The trained module under the launcher's strategy: one interface, whatever is replicated or sharded.

    with trained.micro_batch(is_last):
        trained.backward(loss(trained(batch, targets)))
    norm = trained.gradient_norm()      # global; nothing has moved, nothing was waited for
    trained.step(float(norm), learning_rate)

`trained.module` is the plain module: DDP trains it in place; a strategy that shards trains a copy, and
`publish` brings the plain one up to date before it is evaluated, saved or written out. The student is small
by definition, so a whole one fits beside its shards.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tinybert_dist.distill.modules import LossModule, LossSums
from tinybert_dist.encoders import encoder_layers
from tinybert_dist.training.optimizer import build_optimizer
from tinybert_dist.training.options import TrainingOptions
from tinybert_dist.training.strategy import RunAccelerator, autocast

MOMENTS = ("exp_avg", "exp_avg_sq")


class Trained:
    """One process, DDP and FSDP2: torch's optimizer steps over the parameters, whole or sharded."""

    def __init__(self, accelerator: RunAccelerator, module: LossModule, options: TrainingOptions):
        self.accelerator, self.module = accelerator, module.to(accelerator.device).train()
        self.max_norm = options.max_grad_norm
        self.live = self._live_module()
        # inside whatever wraps the module: DeepSpeed switches an autocast around it off
        self.live.forward = autocast(accelerator)(self.live.forward)  # type: ignore[method-assign]
        self.wrapped, self.optimizer = self._prepare(build_optimizer(self.live, options))
        self._parameters = [p for _, p in self.named_parameters()]  # walking the modules costs 50 us

    def _live_module(self) -> LossModule:
        if self.accelerator.distributed_type != DistributedType.FSDP:
            return self.module
        live = copy.deepcopy(self.module)
        live.keeps_outputs_in_graph = True
        return live

    def _prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        if plugin := getattr(self.accelerator.state, "fsdp_plugin", None):
            layers = encoder_layers(self.live.model.base_model)
            plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers})
        wrapped, prepared = self.accelerator.prepare(self.live, optimizer)
        return wrapped, prepared.optimizer  # accelerate's wrapper would decide for itself when to step

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained, under the plain module's names."""
        return ((name, p) for name, p in self.live.named_parameters() if p.requires_grad)

    def __call__(self, *arguments: Any) -> LossSums:
        """The forward through the wrapper: the one way gradients of all processes meet."""
        return self.wrapped(*arguments)

    def micro_batch(self, is_last: bool) -> AbstractContextManager:
        """Around forward and backward of a micro-batch; gradients meet in the last of a step."""
        return nullcontext() if is_last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        """Accumulates gradients, as the mean over the processes."""
        loss.backward()

    def gradient_norm(self) -> Tensor:
        """Global L2 norm over all processes, before clipping; a scalar on the device."""
        return _whole(torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None]))

    def step(self, norm: float, learning_rate: float) -> None:
        """Clips, moves the optimizer, forgets the gradients."""
        # a factor of 1 or more would be cut to 1: a pass over all gradients that changes no bit
        if self.max_norm and self.max_norm / (norm + 1e-6) < 1.0001:
            torch.nn.utils.clip_grads_with_norm_(
                self._parameters, self.max_norm, torch.tensor(norm, device=self.accelerator.device)
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def publish(self) -> None:
        """Brings the plain module up to date. Collective."""
        if self.live is not self.module:
            for name, parameter in self.named_parameters():
                self.module.get_parameter(name).copy_(_whole(parameter))

    def moments(self) -> dict[str, Tensor]:
        """Adam's moments as `exp_avg.<parameter>`, whole, on the CPU. Collective."""
        return {
            # without one where no gradient ever arrived
            f"{moment}.{name}": _whole(
                self.optimizer.state[parameter].get(moment, torch.zeros_like(parameter))
            )
            for name, parameter in self.named_parameters()
            for moment in MOMENTS
        }

    def load_moments(self, moments: dict[str, Tensor], step: int) -> None:
        """Continues with the moments after `step` optimizer steps."""
        for name, parameter in self.named_parameters():
            state = {m: _placed_like(parameter, moments[f"{m}.{name}"]) for m in MOMENTS}
            self.optimizer.state[parameter] = {"step": _counter(parameter, step), **state}

    def whole_weights(self) -> list[tuple[str, Tensor]]:
        """Those every process holds a whole copy of: they must be equal."""
        return [(n, p.detach()) for n, p in self.named_parameters() if not isinstance(p, DTensor)]

    def whole_gradients(self) -> list[tuple[str, Tensor]]:
        """Gradients of whole_weights, after the last micro-batch: they must be equal."""
        whole = [(n, p) for n, p in self.named_parameters() if not isinstance(p, DTensor)]
        return [(n, torch.zeros_like(p) if p.grad is None else p.grad) for n, p in whole]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _placed_like(parameter: Tensor, whole: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return whole.to(parameter.device)
    # every process has read the same file: each takes its part, nothing is sent
    return distribute_tensor(
        whole.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def _counter(parameter: Tensor, step: int) -> Tensor:
    return torch.tensor(float(step), device=parameter.device)  # where the fused optimizer keeps it
