"""The whole benchmark: peak, teacher, loader, every stage, and the sweep, as one dict of plain values."""

from collections.abc import Callable
from functools import partial
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from torch import distributed

from tinybert_dist import __version__
from tinybert_dist.benchmark.floor import figures, forward_flops, step_flops, teacher_flops
from tinybert_dist.benchmark.measure import Work, measure
from tinybert_dist.benchmark.options import BenchmarkOptions
from tinybert_dist.benchmark.peak import matrix_rates
from tinybert_dist.benchmark.phases import seconds_by_phase
from tinybert_dist.benchmark.steps import Evaluation, Steps, TeacherForwards, counts_per_step, loop_of
from tinybert_dist.benchmark.subject import Subject
from tinybert_dist.benchmark.sweep import clear_memory, is_out_of_memory, sweep
from tinybert_dist.config import to_dict
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.distill.capture import uses_capture
from tinybert_dist.report.speed import hardware
from tinybert_dist.training.feed import MICRO_BATCH_TOKENS
from tinybert_dist.training.loop import TrainingLoop
from tinybert_dist.training.strategy import RunAccelerator, strategy_name

MAX_EVALUATED_ROWS = 512
PROFILED_STEPS, COUNTED_STEPS = 3, 2
OUT_OF_MEMORY = {"error": "out of memory"}


class Benchmark:
    """Measures one thing after the other; each leaves the memory as it found it."""

    def __init__(
        self,
        options: BenchmarkOptions,
        accelerator: RunAccelerator,
        begins: Callable[[str, dict[str, Any]], None],
    ):
        """begins: hears of what is measured next, and what has been found so far."""
        self.options, self.accelerator, self.begins = options, accelerator, begins
        self.subject = Subject(options, accelerator)
        self.rates: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Everything that was asked for. Collective."""
        options = self.options
        result = self._facts()
        self.begins("matrix products", result)
        self.rates = self._peak()
        result |= {"matrix_products": self.rates, "measured": {}, "where": {}}
        measured, where = result["measured"], result["where"]
        distils = [stage for stage in options.stages if stage in {"general", "step_1"}]
        if distils:
            self.begins("loader and teacher alone", result)
            result["loader"], measured["teacher_forward"] = self._alone(distils[0])
        for stage in options.stages:
            self.begins(stage, result)
            if stage == "evaluate":
                measured[stage] = self._attempt(self._evaluation)
            else:
                measured[stage] = self._attempt(partial(self._training, stage, where))
        trains = [stage for stage in options.stages if stage != "evaluate"]
        if trains and options.candidates(self.accelerator.device.type):
            self.begins(f"micro-batch sizes, {trains[0]}", result)
            result["sweep"] = {"stage": trains[0]} | self._attempt(
                lambda: sweep(self.subject.job(trains[0]), options)
            )
        return result

    def _facts(self) -> dict[str, Any]:
        accelerator = self.accelerator
        return {
            "hardware": hardware(accelerator.device),
            "versions": {
                "tinybert_dist": __version__,
                "transformers": transformers.__version__,
                "accelerate": accelerate.__version__,
            },
            "processes": accelerator.num_processes,
            "strategy": strategy_name(accelerator),
            "precision": accelerator.precision,
            "subject": self.subject.describe(),
            "options": to_dict(self.options),
        }

    def _peak(self) -> dict[str, Any]:
        text, options = self.subject.text, self.options
        step_tokens = (
            text.num_tokens * options.train_batch_size // len(text) // self.accelerator.num_processes
        )
        limit = options.micro_batch_tokens or MICRO_BATCH_TOKENS[self.accelerator.device.type]
        num_tokens = max(1, min(limit, step_tokens // options.gradient_accumulation_steps))
        return matrix_rates(self.accelerator, self.subject.teacher_config, num_tokens, options.measure_s)

    def _alone(self, stage: str) -> tuple[dict[str, float], dict[str, Any]]:
        job = self.subject.job(stage)
        loop = loop_of(job)
        rate = torch.tensor(loop.feed.delivery_rate(self.options.measure_s / 2), dtype=torch.float64)
        rate = self.accelerator.reduce(rate.to(self.accelerator.device), "sum")
        forwards = TeacherForwards(job.targets, self.accelerator, loop.feed.shares(0, loop.total_steps))
        teacher = self._measured(forwards, lambda work: teacher_flops(job.targets, work))
        return {"tokens_per_s": float(rate)}, teacher

    def _training(self, stage: str, where: dict[str, Any]) -> dict[str, Any]:
        job = self.subject.job(stage)
        loop = loop_of(job)
        steps = Steps(loop)
        entry = self._measured(steps, lambda work: step_flops(job.module, job.targets, work))
        model = loop.trained.live.model.base_model
        where[stage] = seconds_by_phase(steps, model, self.accelerator, PROFILED_STEPS)
        entry["counters"] = counts_per_step(steps, COUNTED_STEPS)
        if self.accelerator.num_processes > 1:
            entry["gradients"] = self._all_reduce(loop)
        return entry

    def _all_reduce(self, loop: TrainingLoop) -> dict[str, float]:
        """Of gradients as large as the student's, by itself: in a step it overlaps with the backward."""
        size = sum(p.numel() for p in loop.job.module.parameters() if p.requires_grad)
        gradients = torch.zeros(size, device=self.accelerator.device)

        def work() -> Work:
            distributed.all_reduce(gradients)
            return Work(tokens=size)

        measured = measure(work, self.accelerator, self.options.measure_s / 5, self.options.warm_up_steps)
        return {"bytes": 4.0 * size, "all_reduce_s": float(np.median(measured.seconds))}

    def _evaluation(self) -> dict[str, Any]:
        subject, options = self.subject, self.options
        config, collate = subject.student_config, subject.collate
        rows = subject.task.fetch(range(min(MAX_EVALUATED_ROWS, len(subject.task))))
        some = TokenDataset.from_rows([r.input_ids.tolist() for r in rows], [r.segment_b for r in rows])
        model = subject.model(config, with_head=True)
        uses_capture(model)
        max_tokens = options.eval_batch_size * collate.max_length
        unit = Evaluation(model, some, collate, self.accelerator, max_tokens)
        return self._measured(unit, lambda work: forward_flops(config, work, with_head=True))

    def _measured(self, unit: Callable[[], Work], flops: Callable[[Work], float]) -> dict[str, Any]:
        measured = measure(unit, self.accelerator, self.options.measure_s, self.options.warm_up_steps)
        return figures(measured, flops(measured.total), self.rates, self.accelerator)

    def _attempt(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            result = work()
        except Exception as error:
            # the others would wait for this process in their next collective
            if self.accelerator.num_processes > 1 or not is_out_of_memory(error):
                raise
            result = OUT_OF_MEMORY
        self.accelerator.free_memory()
        clear_memory()
        return result
