"""Task distillation: step 1 learns a fine-tuned teacher's layers, step 2 (--pred_distill) its predictions."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from tinybert_dist.config import HfArg, UserError, run_stage
from tinybert_dist.data.encoding import encode
from tinybert_dist.data.labels import map_labels
from tinybert_dist.data.tasks import TaskData, TaskOptions, load_task
from tinybert_dist.data.text import BadRecords
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.distill.options import DistillOptions
from tinybert_dist.distill.teacher import Teacher
from tinybert_dist.models import (
    as_transformers_head,
    count_parameters,
    label_names,
    load_classifier,
    load_tokenizer,
    require_trained_head,
    weights_fingerprint,
)
from tinybert_dist.stages import evaluate
from tinybert_dist.training.job import Job, no_targets
from tinybert_dist.training.layout import choose_collator
from tinybert_dist.training.options import TrainingOptions
from tinybert_dist.training.outputs import classifier_outputs
from tinybert_dist.training.run_folder import refuse_strangers_folder
from tinybert_dist.training.scoring import Scorer
from tinybert_dist.training.strategy import on_main, start_accelerator, teacher_dtype
from tinybert_dist.training.student import check_same_vocabulary, continue_projections
from tinybert_dist.training.targets import KeptLogits, keep_logits
from tinybert_dist.training.train import train


@dataclass(kw_only=True)
class TaskDistillConfig(TaskOptions, DistillOptions, TrainingOptions):
    """task_distill: teacher of a task + student -> student of the task."""

    teacher_model: str | None = HfArg(default=None, help="fine-tuned teacher: hub name or folder")
    student_model: str = HfArg(help="student: general student for step 1, output of step 1 for step 2")
    pred_distill: bool = HfArg(default=False, help="step 2: learn the teacher's predictions")
    do_train: bool = HfArg(default=False, help="accepted for old command lines: training is the default")
    do_eval: bool = HfArg(
        default=False, help="only evaluate --student_model (with --do_train: train, which evaluates anyway)"
    )
    classifier_head: str = HfArg(
        default="auto",
        metadata={"choices": ["auto", "transformers", "reference"]},
        help="the teacher's head: reference = relu after the pooler, as in the original's checkpoints",
    )

    def __post_init__(self) -> None:
        if self.lr_schedule is None and not self.pred_distill:
            self.lr_schedule = "constant"  # the reference's step 1 has neither warm-up nor decay
        super().__post_init__()
        self.do_eval = self.do_eval and not self.do_train
        if self.teacher_model is None and not self.do_eval:
            raise UserError(
                "task_distill needs --teacher_model (or --do_eval to evaluate --student_model alone)"
            )


def run(config: TaskDistillConfig) -> dict[str, Any]:
    """One step of task distillation, or an evaluation; returns the outcome."""
    if config.do_eval:
        names = {f.name for f in fields(evaluate.EvaluateConfig)}
        return evaluate.run(evaluate.EvaluateConfig(**{k: v for k, v in vars(config).items() if k in names}))
    accelerator = start_accelerator(config.mixed_precision)
    on_main(accelerator, refuse_strangers_folder, config.output_dir)
    bad = BadRecords(config.on_bad_record)
    assert config.teacher_model is not None  # __post_init__ demands it for training
    tokenizer = load_tokenizer(
        config.teacher_model, do_lower_case=config.do_lower_case, max_length=config.max_seq_length
    )
    check_same_vocabulary(tokenizer, config.student_model, config.teacher_model, config.do_lower_case)
    task = load_task(config, bad, splits=("train", "dev"))
    if accelerator.is_main_process:
        print(task.describe(), *filter(None, [bad.summary()]), sep="\n")
    dataset = training_rows(task, tokenizer, config.max_seq_length)
    regression = task.spec.mode == "regression"
    problem_type = "regression" if regression else "single_label_classification"
    labels = task.spec.labels or None
    teacher = load_classifier(
        config.teacher_model,
        labels=labels,
        problem_type=problem_type,
        classifier_head=config.classifier_head,
        seed=config.seed,
    )
    require_trained_head(teacher, config.teacher_model)
    student = as_transformers_head(
        load_classifier(config.student_model, labels=labels, problem_type=problem_type, seed=config.seed)
    )
    layer_map = None if config.pred_distill else config.build_map(student.config, teacher.config)
    order = (
        None
        if regression
        else map_labels(task.spec.labels, label_names(teacher.config), teacher.config.num_labels)
    )
    own_order = (
        None
        if regression
        else map_labels(task.spec.labels, label_names(student.config), student.config.num_labels)
    )
    inputs = {
        "teacher_model": weights_fingerprint(teacher),
        "student_model": weights_fingerprint(student),
        "label_order": [None if o is None else o.tolist() for o in (order, own_order)],
        "data_dir": task.fingerprint,
        "unlabelled_file_path": dataset.fingerprint,
    }
    collate = choose_collator(
        config.layout,
        [teacher, student],
        dataset,
        pad_token_id=tokenizer.pad_token_id,
        vocab_size=len(tokenizer),
        max_length=config.max_seq_length,
        reference_averaging=config.reference_averaging,
    )
    torch.manual_seed(config.seed)
    distiller = config.build_distiller(
        student, teacher.config, layer_map, prediction=config.pred_distill, regression=regression
    )
    continue_projections(distiller, config.student_model)
    scorer = Scorer.of(
        task, task.dev_splits, tokenizer, collate, accelerator, config.eval_batch_size, own_order
    )
    evaluates = bool(task.dev_splits) and config.pred_distill
    stage = "task_distill_prediction" if config.pred_distill else "task_distill_intermediate"
    facts = {
        "teacher": f"{config.teacher_model}: {count_parameters(teacher):,} parameters",
        "student": f"{config.student_model}: {count_parameters(student):,} parameters",
        "learns": "predictions" if layer_map is None else f"layers {layer_map} (student:teacher)",
    }

    def logits_of_teacher() -> KeptLogits:
        return keep_logits(
            Path(config.output_dir) / "teacher_logits",
            teacher.to(accelerator.device),
            dataset,
            collate,
            accelerator,
            # student logits are in the student's own label order, so are their targets
            label_order=None if order is None or own_order is None else order[own_order.argsort()],
            key={k: inputs[k] for k in ("teacher_model", "label_order", "unlabelled_file_path")}
            | {"head": config.classifier_head},
            max_tokens=config.eval_batch_size * config.max_seq_length,
        )

    keeps = config.pred_distill and not config.dry_run
    if not keeps:
        teacher.to(accelerator.device, teacher_dtype(accelerator))
    outcome = train(
        Job(
            stage=stage,
            options=config,
            accelerator=accelerator,
            module=distiller,
            dataset=dataset,
            collate=collate,
            inputs=inputs,
            targets=no_targets if keeps else Teacher(teacher, layer_map, with_logits=config.pred_distill),
            make_targets=logits_of_teacher if keeps else None,
            evaluate=(lambda: scorer(student)) if evaluates else None,
            keep="best" if evaluates else "last",
            write_outputs=classifier_outputs(
                config, "task_distill", student, tokenizer, scorer, accelerator, config.student_model,
                teacher=config.teacher_model, distiller=distiller,
            ),
            facts=facts,
        )
    )  # fmt: skip
    accelerator.free_memory()
    return outcome


def training_rows(task: TaskData, tokenizer, max_seq_length: int) -> TokenDataset:
    """Labelled and unlabelled rows as one dataset; distillation looks at the teacher, not at the labels."""
    parts = [split for split in ("train", "unlabelled") if split in task.splits]
    return TokenDataset.concat(
        [encode(task.splits[p], tokenizer, max_seq_length, task.origins[p]) for p in parts]
    )


def main(argv: list[str] | None = None) -> Any:
    """Command line of the stage."""
    return run_stage(run, TaskDistillConfig, argv)


if __name__ == "__main__":
    main()
