"""Starts accelerate so that the processes the launcher started really train together."""

import datetime
import os
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
)

from tinybert_dist.config import UserError

ResultT = TypeVar("ResultT")
SUPPORTED = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


def start_accelerator(mixed_precision: str = "auto", timeout_s: float = 600) -> Accelerator:
    """One Accelerator for one process or DDP; devices and world size come from the launcher.

    Raises UserError when the launcher's strategy cannot be used, or its processes do not see one another.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    has_gpu = torch.cuda.is_available()
    handlers: list = [DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)]
    if world_size > 1:
        # without the explicit backend a CPU launch silently gives processes that train alone
        backend = "nccl" if has_gpu else "gloo"
        handlers.append(
            InitProcessGroupKwargs(backend=backend, timeout=datetime.timedelta(seconds=timeout_s))
        )
    if mixed_precision in {"auto", "fastest"}:
        mixed_precision = "bf16" if _has_fast_bf16(has_gpu, mixed_precision == "fastest") else "no"
    accelerator = Accelerator(cpu=not has_gpu, mixed_precision=mixed_precision, kwargs_handlers=handlers)
    if accelerator.num_processes != world_size:
        raise UserError(
            f"the launcher started {world_size} processes but they see {accelerator.num_processes}; start "
            "with one of accelerate_configs/ (accelerate launch --config_file ...)"
        )
    if accelerator.distributed_type not in SUPPORTED:
        raise UserError(
            f"strategy {accelerator.distributed_type.value} is not supported by this version; use one of "
            "accelerate_configs/"
        )
    return accelerator


def _has_fast_bf16(has_gpu: bool, cpu_too: bool) -> bool:
    if has_gpu:
        return torch.cuda.is_bf16_supported()
    # emulated bf16 is several times slower than float32; with the instructions it is about twice as fast
    return cpu_too and torch.cpu._is_avx512_bf16_supported()


def on_main(accelerator: Accelerator, function: Callable[..., ResultT], *arguments: object) -> ResultT:
    """Runs `function` on the main process only; its result, or its error, reaches every process."""
    outcome: list = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function(*arguments)
        except Exception as error:  # whatever it is, the others must not wait for a result
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def teacher_dtype(accelerator: Accelerator) -> torch.dtype:
    """The teacher needs no master weights: it computes in the precision of the run."""
    return torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
