"""Where the teacher lives: whole on every process, or, when it is large, divided over them."""

import torch
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tinybert_dist.config import UserError
from tinybert_dist.distill.teacher import Teacher
from tinybert_dist.encoders import encoder_layers
from tinybert_dist.training.strategy import RunAccelerator


def teacher_dtype(accelerator: RunAccelerator) -> torch.dtype:
    """The teacher needs no master weights: it computes in the precision of the run."""
    return torch.bfloat16 if accelerator.precision == "bf16" else torch.float32


def require_sharding(accelerator: RunAccelerator, sharding: str) -> None:
    """Raises UserError for a sharding that this launch cannot give, before anything is loaded."""
    if sharding == "zero3" and accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise UserError(
            "--teacher_sharding zero3 needs DeepSpeed (accelerate_configs/deepspeed_*); use fsdp2"
        )


def place_teacher(
    teacher: Teacher, accelerator: RunAccelerator, sharding: str, dtype: torch.dtype
) -> Teacher:
    """Puts the teacher on the device, in place.

    sharding: "none", whole on every process; "fsdp2" or "zero3", each process keeps its share of every weight
    and layers are gathered as they are computed, under any strategy of the student (zero3: under DeepSpeed).
    """
    teacher.to(dtype)
    if sharding == "none" or accelerator.num_processes == 1:
        return teacher.to(accelerator.device)
    if sharding == "fsdp2":
        return _shard_with_fsdp2(teacher, accelerator)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise UserError(
            "--teacher_sharding zero3 needs DeepSpeed (accelerate_configs/deepspeed_*); use fsdp2"
        )
    return _shard_with_zero3(teacher, dtype)


def _shard_with_fsdp2(teacher: Teacher, accelerator: RunAccelerator) -> Teacher:
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    base = teacher.model.base_model
    for layer in encoder_layers(base):
        fully_shard(layer, mesh=mesh)
    if embeddings := getattr(base, "embeddings", None):
        fully_shard(embeddings, mesh=mesh)
    fully_shard(teacher, mesh=mesh)
    return teacher


def _shard_with_zero3(teacher: Teacher, dtype: torch.dtype) -> Teacher:
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {
            "stage": 3,
            # released as soon as used: by default up to 10^9 weights stay, which is the whole teacher
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
        },
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
    deepspeed.initialize(model=teacher, config=config)  # hooks on the modules gather and release
    return teacher
