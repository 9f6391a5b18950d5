"""Which checks a stage has, and the preflight every stage runs before anything large is loaded."""

import sys
from pathlib import Path
from typing import Any

from tinybert_dist.config import UserError
from tinybert_dist.preflight import (
    data_checks,
    folder_checks,
    launch_checks,
    model_checks,
    schedule_checks,
    vector_checks,
)
from tinybert_dist.preflight.findings import Check, Finding, examine
from tinybert_dist.preflight.machine import processes
from tinybert_dist.preflight.subject import Subject
from tinybert_dist.training.run_folder import outcome_in

LAUNCH: dict[str, Check] = {
    "world size": launch_checks.check_world_size,
    "precision": launch_checks.check_precision,
    "workers": launch_checks.check_workers,
    "packages": launch_checks.check_packages,
    "wandb": launch_checks.check_wandb,
}
FOLDER: dict[str, Check] = {"output folder": folder_checks.check_folder}
SPACE: dict[str, Check] = {
    "disk space": folder_checks.check_space,
    "GPU memory": launch_checks.check_memory,
}
TEACHER: dict[str, Check] = {"teacher": model_checks.check_teacher}
STUDENT: dict[str, Check] = {"student": model_checks.check_student}
TOKENIZER: dict[str, Check] = {"tokenizer": model_checks.check_tokenizer}
PAIR: dict[str, Check] = {"layers and heads": model_checks.check_pair}
CORPUS: dict[str, Check] = {"corpus": data_checks.check_corpus}
TASK: dict[str, Check] = {
    "task data": data_checks.check_task_rows,
    "texts": data_checks.check_task_texts,
    "labels": model_checks.check_labels,
}
SCHEDULE: dict[str, Check] = {"schedule": schedule_checks.check_schedule}
AUGMENT: dict[str, Check] = {
    "masked-LM head": model_checks.check_masked_lm,
    "data": data_checks.check_augmented_texts,
    "word vectors": vector_checks.check_vectors,
}

CHECKS: dict[str, dict[str, Check]] = {
    "prepare_corpus": LAUNCH | FOLDER | TOKENIZER | CORPUS | SPACE,
    "general_distill": LAUNCH | FOLDER | TEACHER | STUDENT | TOKENIZER | PAIR | CORPUS | SCHEDULE | SPACE,
    "finetune_teacher": LAUNCH | FOLDER | TEACHER | TOKENIZER | TASK | CORPUS | SCHEDULE | SPACE,
    "augment": LAUNCH | FOLDER | TEACHER | TOKENIZER | AUGMENT,
    "task_distill": LAUNCH | FOLDER | TEACHER | STUDENT | TOKENIZER | PAIR | TASK | SCHEDULE | SPACE,
    "export": LAUNCH | FOLDER | STUDENT | TOKENIZER | TASK,
    "report": LAUNCH | FOLDER | {"evaluations": data_checks.check_evaluations},
    "benchmark": LAUNCH,  # it trains nothing: its folder may hold anything
    "evaluate": LAUNCH | FOLDER | STUDENT | TOKENIZER | TASK,
}
OTHERS = LAUNCH | FOLDER


def preflight(stage: str, config: Any) -> None:
    """Checks what a stage was asked for, in seconds and without changing anything; silent when all is well.

    Warnings are printed by the first process. Raises UserError with all mistakes found, each with what to
    change. Of a finished run only the folder is looked at: there is nothing to protect it from.
    """
    checks = FOLDER if is_finished(config) else CHECKS.get(stage, OTHERS)
    findings = examine(checks, Subject(stage, config))
    if processes.rank == 0:
        for finding in findings:
            if finding.severity == "warning":
                print(f"warning: {finding.check}: {finding}", file=sys.stderr, flush=True)
    mistakes = [str(finding) for finding in findings if finding.severity == "error"]
    if len(mistakes) == 1:
        raise UserError(mistakes[0])
    if mistakes:
        raise UserError(f"{len(mistakes)} mistakes:" + "".join(f"\n  - {mistake}" for mistake in mistakes))


def check_stage(subject: Subject) -> list[Finding]:
    """Everything there is to say about a stage before it runs."""
    return examine(CHECKS.get(subject.stage, OTHERS), subject)


def is_finished(config: Any) -> bool:
    """Whether the output folder holds a finished training run."""
    return outcome_in(Path(config.output_dir or "")).get("outcome") == "finished"
