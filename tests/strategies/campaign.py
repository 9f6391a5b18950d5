"""Everything that is run under every strategy: one launch for each, importing takes longer than a run."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

# configuration file and what the program calls it with 2 processes
STRATEGIES = {
    "cpu_2_processes": "DDP",
    "fsdp2": "FSDP2",
    "deepspeed_zero1": "DeepSpeed ZeRO-1",
    "deepspeed_zero2": "DeepSpeed ZeRO-2",
    "deepspeed_zero3": "DeepSpeed ZeRO-3",
}
ACCUMULATIONS = (1, 4)
STEPS, STOP = 12, 6  # of the runs that are stopped and resumed
PREDICTIONS = {"pred_distill": True, "eval_step": 5}
# name: stage, changes
LOSSES = {
    "scores_alone": ("general_distill", {"hidden_weight": 0, "embedding_weight": 0, "max_steps": 10}),
    "bfloat16": ("general_distill", {"mixed_precision": "bf16", "max_steps": 10}),
    "predictions": ("task_distill", PREDICTIONS),
    "labels": ("finetune_teacher", {"eval_step": 5}),
    # so small an epsilon that noise makes full steps: key biases, which no loss sees here, must not learn
    "noise": ("finetune_teacher", {"adam_epsilon": 1e-12, "eval_step": 10, "max_steps": 10}),
}
# two trainings in one process, one after the other
PRETRAINING = {"pretrain_steps": 4, "max_steps": 4}
WITH_LOSSES = ("cpu_2_processes", "fsdp2", "deepspeed_zero2", "deepspeed_zero3")
WITH_PRETRAINING = ("cpu_2_processes", "fsdp2", "deepspeed_zero2")
# stages that run the teacher, and the one that keeps its logits
TEACHER = {
    "general": ("general_distill", {}),
    "layers": ("task_distill", {}),
    "predictions": ("task_distill", PREDICTIONS),
}
# under which strategies a divided teacher is tried
SHARDINGS = {
    "cpu_2_processes": "fsdp2",
    "fsdp2": "fsdp2",
    "deepspeed_zero2": "fsdp2",
    "deepspeed_zero2_sharded_teacher": "zero3",
}


@dataclass
class Campaign:
    """The runs of one launch: `folder`/<name> for each, and what was printed."""

    folder: Path
    stdout: str
    num_runs: int


def runs(stages, workspace, config, num_processes):
    """{name: (stage, options)} of one configuration."""
    plan = {}
    if config in SHARDINGS:
        for name, (stage, changes) in TEACHER.items():
            sharded = {"teacher_sharding": SHARDINGS[config]}
            plan[f"teacher/{name}"] = (stage, stages[stage] | changes | sharded)
    if config not in STRATEGIES and config != "cpu":
        return plan
    for stage in ("general_distill", "task_distill"):
        for accumulation in ACCUMULATIONS:
            options = stages[stage] | {"gradient_accumulation_steps": accumulation}
            plan[f"equality/{stage}_{accumulation}"] = (stage, options)
            # gradients are read from its checkpoint: cheaper than one after every step of the other
            plan[f"first_step/{stage}_{accumulation}"] = (stage, options | {"max_steps": 1, "save_step": 1})
    if num_processes == 1 and config != "cpu":
        return plan
    plan["undisturbed"] = ("general_distill", stopped_options(stages, workspace, num_processes))
    if config in WITH_LOSSES:
        for name, (stage, changes) in LOSSES.items():
            plan[f"losses/{name}"] = (stage, stages[stage] | changes)
    if config in WITH_PRETRAINING:
        plan["pretrained"] = ("finetune_teacher", pretraining_options(stages, workspace))
    return plan


def stopped_options(stages, workspace, num_processes):
    """A run with dropout, cut into micro-batches alike on any number of processes: the draws are the same."""
    return stages["general_distill"] | {
        "student_model": workspace / "student.json",
        "max_steps": STEPS,
        "save_step": STOP,
        "gradient_accumulation_steps": 2 // num_processes,
    }


def pretraining_options(stages, workspace):
    """A new model, pretrained on text and then fine-tuned."""
    options = {name: v for name, v in stages["finetune_teacher"].items() if name != "teacher_model"}
    source = {"from_scratch": workspace / "no_dropout.json", "pretrain_file_path": workspace / "corpus.txt"}
    return options | PRETRAINING | source | {"tokenizer": workspace / "teacher"}


def stopped_at(step, finished, folder):
    """A copy of a run's folder as it was when only the checkpoint of `step` was there."""
    shutil.copytree(finished, folder)
    (folder / "outcome.json").unlink()
    (folder / "model.safetensors").unlink()
    for checkpoint in (folder / "checkpoints").iterdir():
        if checkpoint.name != f"step-{step:08d}":
            shutil.rmtree(checkpoint)
    return folder


def metrics(folder):
    """metrics.jsonl, one dict a line."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def loss_difference(folder, reference):
    """Largest relative difference of any loss term in any step."""
    return _difference(folder, reference, "loss/")


def norm_difference(folder, reference):
    """Largest relative difference of the unclipped gradient norm in any step: clipping hides factors."""
    return _difference(folder, reference, "grad_norm")


def _difference(folder, reference, prefix):
    ours, theirs = metrics(folder), metrics(reference)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    keys = [key for key in theirs[0] if key.startswith(prefix)]
    assert keys
    return max(abs(a[k] - b[k]) / abs(b[k]) for a, b in zip(ours, theirs, strict=True) for k in keys)
