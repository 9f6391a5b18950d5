"""What a piece of work must cost at least, and how near to that it came."""

from typing import Any

import torch

from tinybert_dist.benchmark.measure import Measured, Work
from tinybert_dist.distill.modules import Classifier, Distiller, LossModule
from tinybert_dist.distill.teacher import Teacher
from tinybert_dist.model_flops import forward_flops_per_token, head_flops
from tinybert_dist.training.job import Targets
from tinybert_dist.training.strategy import RunAccelerator
from tinybert_dist.training.utilisation import peak_flops, training_flops_per_token

FORWARD_AND_BACKWARD = 3


def step_flops(module: LossModule, targets: Targets, work: Work) -> float:
    """Of optimizer steps over `work`: the teacher's forward, three times the student's with its projections
    and heads. Losses, padding and what is no matrix product would cost a perfect program nothing.
    """
    config = module.model.config
    flops = work.tokens * training_flops_per_token(config, targets, _length(work))
    if isinstance(module, Distiller):
        projections = len(module.hidden_pairs) * 2 * config.hidden_size * module.teacher_width
        flops += FORWARD_AND_BACKWARD * work.tokens * projections
    if isinstance(module, Classifier) or (isinstance(module, Distiller) and module.weights.prediction):
        flops += FORWARD_AND_BACKWARD * work.examples * head_flops(config)
    return flops


def forward_flops(config: Any, work: Work, *, with_head: bool) -> float:
    """Of a model's forwards over `work`."""
    flops = work.tokens * forward_flops_per_token(config, _length(work))
    return flops + (work.examples * head_flops(config) if with_head else 0)


def teacher_flops(teacher: Targets, work: Work) -> float:
    """Of the forwards of a teacher as it is cut off."""
    assert isinstance(teacher, Teacher)
    return forward_flops(teacher.model.config, work, with_head=False)


def figures(
    measured: Measured, flops: float, rates: dict[str, Any], accelerator: RunAccelerator
) -> dict[str, Any]:
    """What is reported of a measurement; flops: of all its repetitions; rates: of matrix_rates."""
    total, repeats = measured.total, len(measured.work)
    tokens_per_s = measured.per_second("tokens")
    flops_per_token = flops / total.tokens
    rate = rates[accelerator.precision]
    floor_tokens_per_s = rate["best"] / flops_per_token
    entry: dict[str, Any] = {
        "tokens_per_s": tokens_per_s,
        "padded_tokens_per_s": measured.per_second("padded_tokens"),
        "examples_per_s": measured.per_second("examples"),
        "padding_pct": 100 * (1 - total.tokens / total.padded_tokens),
        "seconds": sum(measured.seconds) / repeats,
        "repeats": repeats,
        "tokens": total.tokens / repeats,
        "examples": total.examples / repeats,
        "micro_batches": total.micro_batches / repeats,
        "flops_per_token": flops_per_token,
        "floor_tokens_per_s": floor_tokens_per_s,
        "share_of_floor": tokens_per_s / floor_tokens_per_s,
        "memory_bytes": measured.memory_bytes,
    }
    if accelerator.device.type == "cpu":
        tokens_per_cpu_s = measured.per_cpu_second("tokens")
        entry["tokens_per_cpu_s"] = tokens_per_cpu_s
        entry["share_of_floor_per_cpu_s"] = tokens_per_cpu_s * flops_per_token / rate["per_cpu_s"]
    elif (peak := peak_flops(torch.cuda.get_device_name(accelerator.device))) is not None:
        entry["mfu"] = tokens_per_s * flops_per_token / (peak * accelerator.num_processes)
    return entry


def _length(work: Work) -> float:
    return work.pairs / work.tokens  # the mean over tokens: what attention costs each of them
