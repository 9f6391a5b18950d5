"""How much of what the GPUs can compute a run uses (MFU), where that is known."""

import torch
from transformers import PreTrainedConfig

from tinybert_dist.data.stream import Stream
from tinybert_dist.distill.teacher import Teacher
from tinybert_dist.model_flops import forward_flops_per_token
from tinybert_dist.training.job import Job, Targets

# dense bfloat16 matrix products, FLOP/s, from NVIDIA's data sheets (half of what they give "with sparsity")
PEAKS = {
    "A10": 125e12,
    "A100": 312e12,
    "A30": 165e12,
    "A40": 149.7e12,
    "B200": 2250e12,
    "GH200": 989.4e12,
    "H100": 989.4e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H200": 989.4e12,
    "L4": 121e12,
    "L40S": 362e12,
}


def peak_flops(device_name: str) -> float | None:
    """Of one GPU by the name that CUDA gives it, None where it is not known."""
    words = device_name.replace("-", " ").split()
    found = [name for name in PEAKS if set(name.split()) <= set(words)]
    return PEAKS[max(found, key=len)] if found else None


def training_flops_per_token(student: PreTrainedConfig, targets: Targets, length: float) -> float:
    """What one real token costs: the teacher's forward, the student's forward and, twice that, its backward.

    Encoders alone: heads, projections and losses are left out. targets: of the job, as they were made.
    """
    flops = 3 * forward_flops_per_token(student, length)
    if isinstance(targets, Teacher):
        flops += forward_flops_per_token(targets.model.config, length)
    return flops


class Utilisation:
    """Turns real tokens per second into per cent of the peak of all GPUs."""

    def __init__(self, job: Job):
        accelerator = job.accelerator
        rows = job.dataset.sample if isinstance(job.dataset, Stream) else job.dataset
        length = rows.num_tokens / len(rows)
        self.flops_per_token = training_flops_per_token(job.module.model.config, job.targets, length)
        peak = None
        if accelerator.device.type == "cuda" and accelerator.precision == "bf16":
            peak = peak_flops(torch.cuda.get_device_name(accelerator.device))
        self.peak = peak * accelerator.num_processes if peak else None

    def values(self, tokens_per_s: float) -> dict[str, float]:
        """The metric; nothing where the peak is not known."""
        if self.peak is None:
            return {}
        return {"throughput/mfu_pct": 100 * tokens_per_s * self.flops_per_token / self.peak}
