"""The one training loop: teacher fine-tuning, general distillation and both task steps run through it.

Order of events in a step: fetch all micro-batches -> reduce denominators -> forward and backward of each,
gradients synchronised on the last -> reduce losses, finite flag and stop flag once -> gate -> optimizer ->
log / evaluate / save when due -> stop when agreed. Every draw is keyed by (seed, step, micro-batch), so a
resumed run repeats an undisturbed one.
"""

import math
import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from tinybert_dist.data.batches import StepBatches, draw_seed
from tinybert_dist.data.order import Order
from tinybert_dist.micro_batch import MicroBatch
from tinybert_dist.training.checkpoint import Checkpoint, Checkpoints
from tinybert_dist.training.health import (
    StopRequest,
    check_equal,
    check_finite,
    check_gradients_arrive,
)
from tinybert_dist.training.heartbeat import beat
from tinybert_dist.training.job import Job
from tinybert_dist.training.progress import ProgressLine
from tinybert_dist.training.run_folder import RunFolder
from tinybert_dist.training.schedule import learning_rate_at
from tinybert_dist.training.strategy import autocast, on_main
from tinybert_dist.training.tracking import Tracker
from tinybert_dist.training.window import Window
from tinybert_dist.training.wrap import wrap

MICRO_BATCH_TOKENS = {"cpu": 8192, "cuda": 16384}
PADDED_PIECES = 8


class TrainingLoop:
    """Trains job.module to the end or to an agreed stop. Collective: every process runs it."""

    def __init__(self, job: Job, folder: RunFolder, resumed: Checkpoint | None):
        options, accelerator = job.options, job.accelerator
        self.job, self.folder, self.options, self.accelerator = job, folder, options, accelerator
        self.checkpoints = Checkpoints(
            folder.path / "checkpoints", options.keep_checkpoints, folder.attempt.require_ours
        )
        self.order = Order(len(job.dataset), options.train_batch_size, options.seed)
        self.total_steps = options.max_steps or math.ceil(
            self.order.steps_per_epoch * options.num_train_epochs
        )
        self.eval_step = options.eval_step or self.order.steps_per_epoch
        self.save_step = options.save_step or self.eval_step
        num_micro_batches = options.gradient_accumulation_steps * accelerator.num_processes
        if (
            job.collate.layout == "padded"
        ):  # cut finer, sorted by length: 65 % padding in one piece, 12 % in 8
            num_micro_batches *= max(
                1, min(PADDED_PIECES, options.train_batch_size // (2 * num_micro_batches))
            )
        # constants of the run: kept when it continues on another world size
        self.constants = {
            "num_micro_batches": num_micro_batches,
            "micro_batch_tokens": options.micro_batch_tokens or MICRO_BATCH_TOKENS[accelerator.device.type],
        }
        self.step, self.best, self.evaluated, self.run_id = 0, None, {}, None
        if resumed:
            state = resumed.state
            self.step, self.best, self.evaluated = state["step"], state["best"], state["evaluated"]
            self.run_id, self.constants = state["run_id"], state["constants"]
        self.frozen, self.reached = self._freeze_unreached()
        if resumed:
            job.module.load_state_dict(resumed.parameters())
        self.trained = wrap(accelerator, job.module, options)
        if resumed:
            self.trained.load_moments(resumed.moments(), self.step)
        self.term_weights = torch.tensor(list(job.module.term_weights.values()), device=accelerator.device)
        self.saved_step = self.step if resumed else -1

    def batches(self, rank: int, world_size: int) -> StepBatches:
        """The micro-batches of every step for one process."""
        return StepBatches(
            self.job.dataset,
            self.order,
            self.job.collate,
            self.constants["num_micro_batches"],
            self.constants["micro_batch_tokens"],
            rank,
            world_size,
            self.job.transform,
        )

    def run(self, stop: StopRequest) -> str:
        """Returns "" when all steps are done, else the reason of the stop."""
        options, accelerator = self.options, self.accelerator
        tracker = Tracker(
            self.folder.path,
            is_main=accelerator.is_main_process,
            stage=self.job.stage,
            config=self.folder.identity,
            wandb_mode=options.wandb_mode,
            project=options.wandb_project,
            group=options.run_group,
            run_id=self.run_id,
            resume_step=self.step,
        )
        self.run_id = tracker.run_id
        progress = ProgressLine(self.total_steps, is_main=accelerator.is_main_process, start_step=self.step)
        loader = self.batches(accelerator.process_index, accelerator.num_processes).loader(
            self.step,
            self.total_steps,
            num_workers=options.num_workers,
            timeout_s=options.hang_timeout_s / 2,  # the worker is named before this process is
            pin_memory=accelerator.device.type == "cuda",
        )
        stop_reason, window = "", Window(self.job.module.term_weights)
        while self.step < self.total_steps and not stop_reason:
            waiting_since = time.perf_counter()
            beat("fetch", self.step + 1)
            micro_batches = next(loader)
            window.wait_s += time.perf_counter() - waiting_since
            stop_ranks = self._optimizer_step(micro_batches, window, bool(stop))
            self.step += 1
            last = self.step == self.total_steps
            if self.step == 1:
                check_gradients_arrive(self.trained.moments(), self.reached)
            if self._is_checked(self.step):
                check_equal(accelerator, "weight", self.trained.whole_weights(), self.step)
            values = {}
            if self.step == 1 or self.step % options.logging_steps == 0 or last:
                values = self._progress() | window.values()
                window = Window(self.job.module.term_weights)
            if self.job.evaluate and (self.step % self.eval_step == 0 or last):
                with window.paused():
                    values |= {f"eval/{k}": v for k, v in self._evaluate().items()}
            if values:
                beat("log")
                tracker.log(self.step, values)
                progress.update(self.step, values)
            if stop_ranks and not last:
                stop_reason = stop.reason or f"asked on process {stop_ranks[0]}"
            if self.step % self.save_step == 0 or last or stop_reason:
                with window.paused():
                    self.save()
        progress.finish()
        tracker.summary({"step": self.step, **{f"best/{k}": v for k, v in (self.best or {}).items()}})
        tracker.finish()
        return stop_reason

    def _optimizer_step(
        self, micro_batches: list[tuple[int, MicroBatch]], window: Window, stop: bool
    ) -> list[int]:
        """One optimizer step over this process's micro-batches; returns the processes asked to stop."""
        accelerator, device, job = self.accelerator, self.accelerator.device, self.job
        groups, totals = self._totals([batch for _, batch in micro_batches])
        loss_sums = torch.zeros(len(job.module.term_weights), dtype=torch.float64, device=device)
        for i, (index, host_batch) in enumerate(micro_batches):
            batch = host_batch.to(device)
            beat("forward")
            targets = job.targets(batch)
            torch.manual_seed(draw_seed(self.options.seed, self.step, index))  # dropout, whatever the process
            is_last = i == len(micro_batches) - 1
            with self.trained.micro_batch(is_last):
                sums = self.trained(batch, targets)
                weight = 0.0 if batch.is_dummy else 1.0
                terms = torch.stack(
                    [sums[t] / totals[groups.index(t.split("/")[0])] for t in job.module.term_weights]
                )
                loss = (terms * weight) @ self.term_weights.to(terms.dtype)
                beat("backward")
                # times the processes: undoes the wrapper's mean over them
                self.trained.backward(loss * accelerator.num_processes)
            loss_sums += terms.detach().double() * weight
        beat("reduce")
        if self._is_checked(self.step + 1):
            check_equal(accelerator, "gradient", self.trained.whole_gradients(), self.step + 1)
        grad_norm = self.trained.gradient_norm()
        losses, bad_ranks, stop_ranks = self._agree(loss_sums, stop)
        check_finite(losses, grad_norm, bad_ranks, self.step + 1)
        beat("optimize")
        self.rate = self._learning_rate()
        self.trained.step(grad_norm, self.rate)
        window.add(losses, grad_norm, *totals[-2:].tolist())
        return stop_ranks

    def _is_checked(self, step: int) -> bool:
        return step == 1 or step % self.options.checksum_step == 0

    def _progress(self) -> dict[str, float]:
        values = {"epoch": self.step / self.order.steps_per_epoch, "learning_rate": self.rate}
        if self.accelerator.device.type == "cuda":
            values["throughput/memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return values

    def _learning_rate(self) -> float:
        options = self.options
        assert options.warmup_proportion is not None and options.lr_schedule is not None, "set by the options"
        return learning_rate_at(
            self.step,
            total_steps=self.total_steps,
            peak=options.learning_rate,
            warmup_proportion=options.warmup_proportion,
            schedule=options.lr_schedule,
        )

    def _totals(self, micro_batches: list[MicroBatch]) -> tuple[list[str], Tensor]:
        """Loss groups and, in that order, their denominators over the optimizer step; then token counts."""
        counts: dict[str, float] = defaultdict(float)
        for batch in micro_batches:
            share = 0 if batch.is_dummy else 1
            own = self.job.module.counts(batch) | {
                "tokens": batch.num_tokens,
                "computed": batch.num_computed_tokens,
            }
            for group, count in own.items():
                counts[group] += share * count
        beat("reduce")
        values = torch.tensor(list(counts.values()), dtype=torch.float64, device=self.accelerator.device)
        return list(counts), self.accelerator.reduce(values, "sum").clamp(min=1)

    def _agree(self, loss_sums: Tensor, stop: bool) -> tuple[dict[str, float], list[int], list[int]]:
        """One reduction: losses of the step by term, processes with a non-finite one, those asked to stop."""
        world_size = self.accelerator.num_processes
        flags = loss_sums.new_zeros(2, world_size)
        flags[0, self.accelerator.process_index] = (~loss_sums.isfinite()).any().double()
        flags[1, self.accelerator.process_index] = float(stop)
        vector = self.accelerator.reduce(torch.cat([loss_sums, flags.flatten()]), "sum").tolist()
        names = list(self.job.module.term_weights)
        bad, stopped = vector[len(names) : len(names) + world_size], vector[len(names) + world_size :]
        return (
            dict(zip(names, vector, strict=False)),
            [rank for rank, flag in enumerate(bad) if flag],
            [rank for rank, flag in enumerate(stopped) if flag],
        )

    def _evaluate(self) -> dict[str, float]:
        """Evaluates and remembers the best step."""
        assert self.job.evaluate is not None
        self.trained.publish()
        self.evaluated = self.job.evaluate()
        if self.best is None or self.evaluated["score"] > self.best["score"]:
            self.best = {"step": self.step, **self.evaluated}
            if self.job.keep == "best":
                self.save()
        return self.evaluated

    def save(self) -> None:
        """Checkpoint of the current step, once."""
        if self.saved_step == self.step:
            return
        beat("save")
        state: dict[str, Any] = {
            "step": self.step,
            "best": self.best,
            "evaluated": self.evaluated,
            "needs": [self.best["step"]] if self.best and self.job.keep == "best" else [],
            "constants": self.constants,
            "run_id": self.run_id,
            "identity": self.folder.identity,
        }
        self.trained.publish()
        parameters, moments = self.job.module.state_dict(), self.trained.moments()
        on_main(self.accelerator, lambda: self.checkpoints.save(parameters, moments, state) and None)
        self.saved_step = self.step

    def _freeze_unreached(self) -> tuple[list[str], list[str]]:
        # one throw-away forward and backward on the unwrapped module
        _, host_batch = self.batches(0, 1)[0][0]
        batch = host_batch.to(self.accelerator.device)
        module = self.job.module.to(self.accelerator.device)
        with autocast(self.accelerator):
            return module.freeze_unreached(module(batch, self.job.targets(batch)))
