"""DeepSpeed ZeRO-1, -2 and -3: moments, gradients and weights divided over the processes."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.utils import combine_grad_norm_groups
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from tinybert_dist.distill.modules import LossModule
from tinybert_dist.training.trained import MOMENTS, Trained


class ZeroTrained(Trained):
    """The engine's backward reduces, its step moves; between the two the loop decides whether to go on."""

    def _live_module(self) -> LossModule:
        return copy.deepcopy(self.module)

    def _prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        config = self.accelerator.deepspeed_plugin.deepspeed_config
        config |= {
            # the loop cuts micro-batches and says which is a step's last
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            # accelerate's 0 means unset, and DeepSpeed then clips at 1
            "gradient_clipping": self.max_norm,
        }
        # by default 2 GB on every process, however small the model
        bucket = min(sum(p.numel() for _, p in self.named_parameters()), 50_000_000)
        config["zero_optimization"] |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
        self.engine, _ = self.accelerator.prepare(self.live, optimizer)
        self.zero = self.engine.optimizer
        self.is_partitioned = self.accelerator.deepspeed_plugin.zero_stage == 3
        self._start_moments(self.zero.optimizer)
        return self.engine, self.zero.optimizer

    def _start_moments(self, optimizer: torch.optim.Optimizer) -> None:
        # the optimizer makes them in its first step, group by group, and ZeRO-1 and -2 look at all groups
        # after the first one's: the others' moments could never be read
        zero = self.zero
        flats = (
            zero.fp32_partitioned_groups_flat if self.is_partitioned else zero.single_partition_of_fp32_groups
        )
        for flat in flats:
            step = torch.zeros((), device=flat.device)
            optimizer.state[flat] = {"step": step, **{m: torch.zeros_like(flat) for m in MOMENTS}}
        if not self.is_partitioned:
            zero._lazy_init_hp_params_optimizer_state()

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        """See Trained.micro_batch."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: Tensor) -> None:
        """See Trained.backward."""
        self.engine.backward(loss)

    def gradient_norm(self) -> Tensor:
        """See Trained.gradient_norm; infinite where DeepSpeed found it invalid."""
        if self.is_partitioned:
            return combine_grad_norm_groups(self.zero._get_norm_groups())
        return self.zero.scaled_global_norm()

    def step(self, norm: float, learning_rate: float) -> None:
        """See Trained.step; the engine clips by itself."""
        for group in self.zero.param_groups:
            group["lr"] = learning_rate
        self.engine.step()

    @torch.no_grad()
    def publish(self) -> None:
        """See Trained.publish."""
        trained = list(self.named_parameters())
        with deepspeed.zero.GatheredParameters([p for _, p in trained], enabled=self.is_partitioned):
            for name, parameter in trained:
                self.module.get_parameter(name).copy_(parameter)

    def moments(self) -> dict[str, Tensor]:
        """See Trained.moments."""
        return {
            f"{m}.{name}": safe_get_full_optimizer_state(parameter, m).cpu()
            for name, parameter in self.named_parameters()
            for m in MOMENTS
        }

    def load_moments(self, moments: dict[str, Tensor], step: int) -> None:
        """See Trained.load_moments."""
        for state in self.optimizer.state.values():
            state["step"].fill_(step)
        for name, parameter in self.named_parameters():
            for m in MOMENTS:
                self._set_moment(parameter, m, moments[f"{m}.{name}"].to(self.accelerator.device))

    def _set_moment(self, parameter: nn.Parameter, moment: str, whole: Tensor) -> None:
        if not self.is_partitioned:
            safe_set_full_optimizer_state(parameter, whole, moment)
            return
        # safe_set_full_* fails where the number of processes does not divide the parameter: pad, take a part
        size, world = parameter.ds_tensor.numel(), self.accelerator.num_processes  # type: ignore[attr-defined]
        padded = nn.functional.pad(whole.flatten(), (0, size * world - whole.numel()))
        own = padded.narrow(0, size * self.accelerator.process_index, size)
        safe_set_local_optimizer_state(parameter, own, moment)

    def whole_weights(self) -> list[tuple[str, Tensor]]:
        """See Trained.whole_weights."""
        return [] if self.is_partitioned else super().whole_weights()

    def whole_gradients(self) -> list[tuple[str, Tensor]]:
        """None: the engine keeps shards of them."""
        return []
