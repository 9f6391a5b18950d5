"""Starts accelerate so that the processes the launcher started really train together.

What the launcher's configuration says is taken as it is: one process, DDP, FSDP2 or DeepSpeed ZeRO-1/2/3, on
GPUs (nccl) or, for tests and small models, on CPUs (gloo).
"""

import datetime
import logging
import os
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    str_to_bool,
)

from tinybert_dist.config import StageFailed, UserError
from tinybert_dist.training.heartbeat import beat

ResultT = TypeVar("ResultT")


class RunAccelerator(Accelerator):
    """accelerate's own, without its mixed precision.

    Under DDP that is autocast, under FSDP2 and DeepSpeed it is half-precision weights: other numbers. Here
    weights, moments and gradients are float32 everywhere, and `autocast` is put around every forward.
    """

    precision = "no"  # or "bf16"


def start_accelerator(mixed_precision: str = "auto", timeout_s: float = 86400) -> RunAccelerator:
    """One accelerator; devices, world size and strategy come from the launcher.

    timeout_s of a collective: more than preparing a corpus on one process takes; hangs are the watchdog's.

    Raises UserError when the launcher's strategy cannot be used, or its processes do not see one another.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    has_gpu = torch.cuda.is_available()
    group = {"timeout": datetime.timedelta(seconds=timeout_s), "backend": "nccl" if has_gpu else "gloo"}
    # its other name in torch 2.13 is unknown to accelerate, and to torch before
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    handlers: list = [DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)]
    with_deepspeed, with_fsdp = map(_launched_with, ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"))
    if with_deepspeed:
        _ready_for_deepspeed(has_gpu)
    if with_fsdp and not has_gpu:
        _ready_for_fsdp2_on_cpu(group)
    elif world_size > 1 or with_deepspeed or with_fsdp:
        # without the explicit backend a CPU launch silently gives processes that train alone
        handlers.append(InitProcessGroupKwargs(**group))
    if mixed_precision in {"auto", "fastest"}:
        mixed_precision = "bf16" if has_fast_bf16(has_gpu, mixed_precision == "fastest") else "no"
    use_cpu = not (has_gpu or with_deepspeed or with_fsdp)
    accelerator = RunAccelerator(cpu=use_cpu, mixed_precision="no", kwargs_handlers=handlers)
    accelerator.precision = mixed_precision
    if accelerator.num_processes != world_size:
        raise UserError(
            f"the launcher started {world_size} processes but they see {accelerator.num_processes}; start "
            "with one of accelerate_configs/ (accelerate launch --config_file ...)"
        )
    _require_known(accelerator)
    return accelerator


def _launched_with(variable: str) -> bool:
    return bool(str_to_bool(os.environ.get(variable, "false")))


def _ready_for_deepspeed(has_gpu: bool) -> None:
    warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.ops  # seconds, and only this strategy needs it

    deepspeed.utils.logger.setLevel(logging.ERROR)  # it warns of every dataclass a module takes or gives
    if has_gpu:
        return
    deepspeed.ops.__compatible_ops__ = {}  # its CPU communication would be compiled, for half a minute
    os.environ.pop("ACCELERATE_USE_CPU", None)  # would silently turn DeepSpeed into DDP


def _ready_for_fsdp2_on_cpu(group: dict) -> None:
    PartialState(cpu=True, timeout=group["timeout"])
    # accelerate looks at fsdp_config only for this type, and on CPUs ignores it without a word
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _require_known(accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type
    known = {"NO", "MULTI_CPU", "MULTI_GPU", "FSDP", "DEEPSPEED"}
    if kind.value not in known or (kind == DistributedType.FSDP and not accelerator.is_fsdp2):
        name = "FSDP version 1" if kind == DistributedType.FSDP else kind.value
        raise UserError(f"strategy {name} is not supported; use one of accelerate_configs/ (fsdp2, ...)")


def strategy_name(accelerator: Accelerator) -> str:
    """ "one process", "DDP", "FSDP2" or "DeepSpeed ZeRO-N"."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"DeepSpeed ZeRO-{accelerator.deepspeed_plugin.zero_stage}"
    if accelerator.distributed_type == DistributedType.FSDP:
        return "FSDP2"
    return "one process" if accelerator.num_processes == 1 else "DDP"


def has_fast_bf16(has_gpu: bool, cpu_too: bool) -> bool:
    """Whether bf16 is computed, not emulated, by the GPU, or, if asked for, by the CPU."""
    if has_gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # emulated bf16 is several times slower than float32; with the instructions it is about twice as fast
    return cpu_too and torch.cpu._is_avx512_bf16_supported()


def autocast(accelerator: RunAccelerator) -> torch.autocast:
    """The precision of the run around a forward, the same under every strategy."""
    return torch.autocast(
        accelerator.device.type, dtype=torch.bfloat16, enabled=accelerator.precision == "bf16"
    )


def seed_draws(device: torch.device, seed: int) -> None:
    """torch.manual_seed for the CPU and `device` alone: 1 us instead of 100.

    For each kind of device that is not in use torch notes the call, with its stack.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def on_main(accelerator: Accelerator, function: Callable[..., ResultT], *arguments: object) -> ResultT:
    """Runs `function` on the main process only; its result, or its error, reaches every process."""
    outcome: list = [None, None]
    own: Exception | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = function(*arguments)
        except Exception as error:  # whatever it is, the others must not wait for a result
            own = error
            # any other kind may hold what cannot be sent, and the others would wait for ever
            is_ours = isinstance(error, (UserError, StageFailed))
            outcome[1] = error if is_ours else StageFailed(f"{type(error).__name__}: {error}")
            own.process = outcome[1].process = 0  # type: ignore[attr-defined]
    beat("wait")
    broadcast_object_list(outcome)
    if failure := own or outcome[1]:
        raise failure
    return outcome[0]
