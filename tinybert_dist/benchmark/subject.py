"""The models, text and jobs that are measured: those of the stages, with random weights.

Speed does not depend on what the weights are, so of models only the config is read.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from tinybert_dist.benchmark.options import BenchmarkOptions
from tinybert_dist.benchmark.text import labelled, open_text
from tinybert_dist.data.batches import Collator
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.distill.modules import Classifier, LossModule
from tinybert_dist.distill.teacher import Teacher
from tinybert_dist.model_files import whole_tensors
from tinybert_dist.models import count_parameters, is_named_student, load_config, student_config
from tinybert_dist.training.job import Job, Targets, no_targets
from tinybert_dist.training.layout import choose_collator
from tinybert_dist.training.strategy import RunAccelerator
from tinybert_dist.training.student import is_config_only
from tinybert_dist.training.targets import KeptLogits
from tinybert_dist.training.teacher_placement import place_teacher, teacher_dtype

ENDLESS = 1_000_000  # optimizer steps: how many are taken is up to who measures
JOB_STAGES = {
    "general": "general_distill",
    "step_1": "task_distill_intermediate",
    "step_2": "task_distill_prediction",
    "teacher": "finetune_teacher",
}
MADE_UP = {"line": "one a row", "pairs": "in filled pairs"}
MIN_ROWS = 1024


@dataclass
class Subject:
    """What is measured, built from the options; `job` makes the job of a stage as its command does."""

    options: BenchmarkOptions
    accelerator: RunAccelerator

    def __post_init__(self) -> None:
        options = self.options
        self.teacher_config = load_config(options.teacher_model) if options.teacher_model else BertConfig()
        self.student_config = _student_config(options.student_model, self.teacher_config)
        self.num_labels = int(self.teacher_config.num_labels or 2)
        self.student_config.num_labels = self.num_labels
        self.layer_map = options.build_map(self.student_config, self.teacher_config)
        self.text, self._tokenizer = open_text(options, self.teacher_config)
        num_rows = max(MIN_ROWS, 2 * options.train_batch_size)
        self.task = labelled(self.text, num_rows, self.num_labels)

    @cached_property
    def collate(self) -> Collator:
        """As the distilling stages choose it."""
        models = [self.model(self.teacher_config), self.model(self.student_config)]
        return choose_collator(
            self.options.layout,
            models,
            self.text,
            self._tokenizer,
            max_length=self.options.max_seq_length,
            reference_averaging=self.options.reference_averaging,
        )

    def describe(self) -> dict[str, str]:
        """What was used, for people."""
        options = self.options
        text = options.train_file_path or f"sentences made up, {MADE_UP[options.mode]}"
        lengths = self.task.lengths
        return {
            "teacher": f"{options.teacher_model or 'BERT-base'}: {_size(self.teacher_config)}",
            "student": f"{options.student_model}: {_size(self.student_config)}",
            "text": f"{text}: {lengths.mean():.1f} tokens a row, the longest {lengths.max()}",
            "learns": f"layers {self.layer_map} (student:teacher)",
        }

    def model(self, config: PreTrainedConfig, *, with_head: bool = False) -> PreTrainedModel:
        """A new one in float32, the same on every process."""
        kind = AutoModelForSequenceClassification if with_head else AutoModel
        torch.manual_seed(self.options.seed)
        with whole_tensors():
            return kind.from_config(config, dtype=torch.float32)

    def job(self, stage: str) -> Job:
        """The training job of a stage, its targets made."""
        module, dataset, targets = self._parts(stage)
        options = replace(self.options, max_steps=ENDLESS)
        return Job(
            stage=JOB_STAGES[stage],
            options=options,
            accelerator=self.accelerator,
            module=module,
            dataset=dataset,
            collate=self.collate,
            inputs={},
            write_outputs=lambda folder, result: None,
            targets=targets,
        )

    def _parts(self, stage: str) -> tuple[LossModule, TokenDataset, Targets]:
        if stage == "teacher":
            model = self.model(self.teacher_config, with_head=True)
            return Classifier(model, regression=False), self.task, no_targets
        predicts = stage == "step_2"
        student = self.model(self.student_config, with_head=stage != "general")
        distiller = self.options.build_distiller(
            student,
            self.teacher_config,
            None if predicts else self.layer_map,
            prediction=predicts,
            regression=False,
        )
        if predicts:
            return distiller, self.task, self._kept_logits()
        dataset = self.text if stage == "general" and len(self.text) >= MIN_ROWS else self.task
        return distiller, dataset, self.teacher()

    def teacher(self) -> Teacher:
        """On the device, as the distilling stages place it."""
        teacher = Teacher(self.model(self.teacher_config), self.layer_map)
        sharding, dtype = self.options.teacher_sharding, teacher_dtype(self.accelerator)
        return place_teacher(teacher, self.accelerator, sharding, dtype)

    def _kept_logits(self) -> KeptLogits:
        shape = len(self.task), self.num_labels
        logits = np.random.default_rng(self.options.seed).standard_normal(shape, dtype=np.float32)
        return KeptLogits([logits], self.accelerator.device)


def _student_config(name: str, teacher: PreTrainedConfig) -> PreTrainedConfig:
    path = Path(name)
    if is_named_student(name) or path.suffix == ".json" or is_config_only(path):
        return student_config(path / "config.json" if path.is_dir() else name, teacher)
    return load_config(name)


def _size(config: PreTrainedConfig) -> str:
    with whole_tensors(), torch.device("meta"):
        parameters = count_parameters(AutoModel.from_config(config))
    return (
        f"{config.num_hidden_layers} layers x {config.hidden_size}, {parameters:,} parameters, random weights"
    )
