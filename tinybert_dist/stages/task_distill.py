"""Task distillation: step 1 learns a fine-tuned teacher's layers, step 2 (--pred_distill) its predictions."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tinybert_dist.config import HfArg, UserError, run_stage
from tinybert_dist.data.batches import Collator
from tinybert_dist.data.labels import map_labels
from tinybert_dist.data.task_tokens import TrainingRows, prepare_rows
from tinybert_dist.data.tasks import TaskData, TaskOptions, load_task
from tinybert_dist.data.text import BadRecords
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.distill.layer_map import LayerMap
from tinybert_dist.distill.options import DistillOptions
from tinybert_dist.distill.teacher import Teacher
from tinybert_dist.files import fingerprint
from tinybert_dist.models import (
    as_transformers_head,
    count_parameters,
    is_named_student,
    label_names,
    load_classifier,
    load_tokenizer,
    require_trained_head,
    weights_fingerprint,
)
from tinybert_dist.preflight.checks import preflight
from tinybert_dist.stages import evaluate
from tinybert_dist.training.job import Job
from tinybert_dist.training.layout import choose_collator
from tinybert_dist.training.options import TrainingOptions
from tinybert_dist.training.outputs import classifier_outputs
from tinybert_dist.training.run_folder import stage_of_run
from tinybert_dist.training.scoring import Scorer
from tinybert_dist.training.strategy import RunAccelerator, on_main, start_accelerator
from tinybert_dist.training.student import check_same_vocabulary, continue_projections
from tinybert_dist.training.targets import KeptLogits, keep_logits
from tinybert_dist.training.teacher_placement import place_teacher, require_sharding, teacher_dtype
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
        if is_named_student(self.student_model) or self.student_model.endswith(".json"):
            raise UserError(
                f"--student_model {self.student_model} is a new student without weights; general_distill "
                "makes it from text first: give its --output_dir here"
            )
        if self.teacher_model is None and not self.do_eval:
            raise UserError(
                "task_distill needs --teacher_model (or --do_eval to evaluate --student_model alone)"
            )


@dataclass(frozen=True)
class Pair:
    """Teacher and student of a task, and where its classes stand among theirs (None for regression)."""

    teacher: PreTrainedModel
    student: PreTrainedModel
    teacher_order: np.ndarray | None
    student_order: np.ndarray | None

    @property
    def logits_order(self) -> np.ndarray | None:
        """Picks the teacher's logits in the student's own label order."""
        if self.teacher_order is None or self.student_order is None:
            return None
        return self.teacher_order[self.student_order.argsort()]

    def fingerprints(self) -> dict[str, Any]:
        """What identifies the two models, by option name."""
        orders = (self.teacher_order, self.student_order)
        return {
            "teacher_model": weights_fingerprint(self.teacher),
            "student_model": weights_fingerprint(self.student),
            "label_order": [None if order is None else order.tolist() for order in orders],
        }


def run(config: TaskDistillConfig) -> dict[str, Any]:
    """One step of task distillation, or an evaluation; returns the outcome."""
    if config.do_eval:
        names = {f.name for f in fields(evaluate.EvaluateConfig)}
        return evaluate.run(evaluate.EvaluateConfig(**{k: v for k, v in vars(config).items() if k in names}))
    accelerator = start_accelerator(config.mixed_precision)
    require_sharding(accelerator, config.teacher_sharding)
    stage = stage_of_run("task_distill", config)
    on_main(accelerator, preflight, "task_distill", config)
    bad = BadRecords(config.on_bad_record)
    assert config.teacher_model is not None  # __post_init__ demands it for training
    tokenizer = load_tokenizer(
        config.teacher_model, do_lower_case=config.do_lower_case, max_length=config.max_seq_length
    )
    check_same_vocabulary(tokenizer, config.student_model, config.teacher_model, config.do_lower_case)
    task = on_main(accelerator, load_task, config, bad, ("dev",))
    pair = load_pair(config, task)
    layer_map = None if config.pred_distill else config.build_map(pair.student.config, pair.teacher.config)
    prepared = Path(config.output_dir) / "tokens"
    rows = on_main(accelerator, prepare_rows, config, task, tokenizer, prepared, bad)
    dataset = rows.dataset
    if accelerator.is_main_process:
        print(task.describe(), rows.description, *filter(None, [bad.summary()]), sep="\n")
    inputs = pair.fingerprints() | fingerprints_of(task, rows)
    facts = {
        "teacher": f"{config.teacher_model}: {count_parameters(pair.teacher):,} parameters",
        "student": f"{config.student_model}: {count_parameters(pair.student):,} parameters",
        "learns": "predictions" if layer_map is None else f"layers {layer_map} (student:teacher)",
    }
    collate = choose_collator(
        config.layout,
        [pair.teacher, pair.student],
        dataset,
        tokenizer,
        max_length=config.max_seq_length,
        reference_averaging=config.reference_averaging,
    )
    torch.manual_seed(config.seed)
    distiller = config.build_distiller(
        pair.student,
        pair.teacher.config,
        layer_map,
        prediction=config.pred_distill,
        regression=task.spec.mode == "regression",
    )
    continue_projections(distiller, config.student_model)
    scorer = Scorer.of(
        task, task.dev_splits, tokenizer, collate, accelerator, config.eval_batch_size, pair.student_order
    )
    key = {name: inputs[name] for name in ("teacher_model", "label_order", "rows")}
    outcome = train(
        Job(
            stage=stage,
            options=config,
            accelerator=accelerator,
            module=distiller,
            dataset=dataset,
            collate=collate,
            inputs=inputs,
            make_targets=lambda: make_targets(config, pair, layer_map, dataset, collate, accelerator, key),
            evaluate=(lambda: scorer(pair.student)) if config.pred_distill else None,
            keep="best" if config.pred_distill else "last",
            write_outputs=classifier_outputs(
                config, "task_distill", pair.student, tokenizer, scorer, accelerator, config.student_model,
                teacher=config.teacher_model, distiller=distiller,
            ),
            models={"teacher_model": config.teacher_model, "student_model": config.student_model},
            facts=facts,
            bad_records=bad.summary(),
        )
    )  # fmt: skip
    return outcome


def fingerprints_of(task: TaskData, rows: TrainingRows) -> dict[str, Any]:
    """What identifies the data, by option name, and its rows."""
    unlabelled = rows.sources.get("unlabelled")
    return {
        "data_dir": fingerprint([task.fingerprint, rows.sources["train"]]),
        "unlabelled_file_path": unlabelled and fingerprint(unlabelled),
        "rows": rows.dataset.fingerprint,
    }


def load_pair(config: TaskDistillConfig, task: TaskData) -> Pair:
    """Both models with a head for the task; UserError for an untrained teacher's or labels that differ."""
    spec = task.spec

    def load(name: str, head: str) -> PreTrainedModel:
        return load_classifier(
            name,
            labels=spec.labels or None,
            problem_type="regression" if spec.mode == "regression" else "single_label_classification",
            classifier_head=head,
            seed=config.seed,
        )

    def order(model: PreTrainedModel) -> np.ndarray | None:
        if spec.mode == "regression":
            return None
        return map_labels(spec.labels, label_names(model.config), model.config.num_labels)

    teacher = load(str(config.teacher_model), config.classifier_head)
    require_trained_head(teacher, str(config.teacher_model))
    student = as_transformers_head(load(config.student_model, "auto"))
    return Pair(teacher, student, order(teacher), order(student))


def make_targets(
    config: TaskDistillConfig,
    pair: Pair,
    layer_map: LayerMap | None,
    dataset: TokenDataset,
    collate: Collator,
    accelerator: RunAccelerator,
    key: dict[str, Any],
) -> Teacher | KeptLogits:
    """The teacher itself for step 1, its logits of every row for step 2."""
    if layer_map is not None:
        teacher = Teacher(pair.teacher, layer_map)
        return place_teacher(teacher, accelerator, config.teacher_sharding, teacher_dtype(accelerator))
    order = None if pair.logits_order is None else torch.from_numpy(pair.logits_order)
    num_classes = len(order) if order is not None else 1

    def teacher_of_predictions() -> Teacher:
        teacher = Teacher(pair.teacher, with_logits=True, label_order=order)
        return place_teacher(teacher, accelerator, config.teacher_sharding, torch.float32)

    if config.dry_run:
        return teacher_of_predictions()
    kept = keep_logits(
        Path(config.output_dir) / "teacher_logits",
        teacher_of_predictions,
        num_classes,
        dataset,
        collate,
        accelerator,
        key=key | {"head": config.classifier_head},
        max_tokens=config.eval_batch_size * config.max_seq_length,
    )
    if config.teacher_sharding == "none":
        pair.teacher.cpu()  # not run again
    return kept


def main(argv: list[str] | None = None) -> Any:
    """Command line of the stage."""
    return run_stage(run, TaskDistillConfig, argv)


if __name__ == "__main__":
    main()
