"""What a person reads before a run and after it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tinybert_dist.training.job import Job
from tinybert_dist.training.loop import TrainingLoop
from tinybert_dist.training.progress import readable_count, readable_time
from tinybert_dist.training.run_folder import RunFolder
from tinybert_dist.training.strategy import strategy_name
from tinybert_dist.training.tracking import Tracker

GO_ON = {
    "finetune_teacher": "task_distill --teacher_model {folder} --student_model GENERAL --data_dir ...",
    "general_distill": "task_distill --student_model {folder} --teacher_model FINE_TUNED --data_dir ...",
    "task_distill_intermediate": "task_distill --pred_distill --student_model {folder} --teacher_model ...",
    "task_distill_prediction": "evaluate --model {folder} --data_dir ...",
}


def before(job: Job, loop: TrainingLoop) -> dict[str, Any]:
    """What the options come to: data, steps, processes, parameters, cost."""
    options, world_size = job.options, job.accelerator.num_processes
    trained = sum(p.numel() for p in job.module.parameters() if p.requires_grad)
    num_micro_batches = loop.feed.constants["num_micro_batches"]
    cost = loop.utilisation.flops_per_token
    happens = {"logs": options.logging_steps, "evaluations": loop.eval_step, "checkpoints": loop.save_step}
    if job.evaluate is None:
        del happens["evaluations"]
    return {
        **job.facts,
        **loop.feed.facts,
        "processes": f"{world_size} on {job.accelerator.device.type}, {strategy_name(job.accelerator)}, "
        f"{job.accelerator.precision} mixed precision",
        "each process": f"{math.ceil(num_micro_batches / world_size)}+ micro-batches of a step "
        f"(--gradient_accumulation_steps {options.gradient_accumulation_steps})",
        "steps": f"{loop.total_steps:,} ({loop.feed.steps_per_epoch:,} an epoch)",
        "steps between": ", ".join(f"{what} {steps:,}" for what, steps in happens.items()),
        "trained parameters": f"{trained:,}"
        + (f"; {len(loop.frozen)} tensors frozen" if loop.frozen else ""),
        "computation": f"{readable_count(cost)} FLOPs a real token (encoders, forward and backward)",
    }


def after(
    job: Job, folder: RunFolder, loop: TrainingLoop, tracker: Tracker, *, is_finished: bool
) -> dict[str, Any]:
    """Where everything is, and how to go on."""
    bad_records = [job.bad_records]
    if streamed := loop.counts.get("data/bad_records"):
        bad_records.append(f"{streamed:,.0f} bad records passed over (the first of each kind is named above)")
    since = f" since step {loop.start_step:,}" if loop.start_step else ""
    best = loop.best and f"{loop.best['score']:.4f} at step {loop.best['step']:,}"
    facts = {
        "model" if is_finished else "checkpoints": folder.path / ("" if is_finished else "checkpoints"),
        "best score": best,
        "seen": f"{readable_count(loop.tokens_seen)} real tokens in {loop.step:,} steps",
        "took": readable_time(loop.taken_s) + since,
        "bad records": "; ".join(filter(None, bad_records)),
        "metrics": folder.path / "metrics.jsonl",
        "wandb": tracker.place,
        "go on": _go_on(job, folder) if is_finished else "the same command",
    }
    return {name: value for name, value in facts.items() if value}


def _go_on(job: Job, folder: RunFolder) -> str:
    command = GO_ON.get(job.stage)
    return f"tinybert-dist {command.format(folder=folder.path)}" if command else ""


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Names and values in two columns."""
    width = max(map(len, facts))
    for name, value in facts.items():
        yield f"  {name:<{width}}  {value}"
