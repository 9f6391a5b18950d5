"""The one training loop: teacher fine-tuning, general distillation and both task steps run through it.

Order of events in a step: fetch all micro-batches -> reduce denominators -> forward and backward of each,
gradients synchronised on the last -> reduce losses, finite flag and stop flag once, and read them -> gate ->
optimizer -> log / evaluate / save when due -> stop when agreed. Every draw is keyed by (seed, step,
micro-batch), so a resumed run repeats an undisturbed one.
"""

import math
import time
from typing import Any

import psutil
import torch

from tinybert_dist.data.batches import draw_seed
from tinybert_dist.data.stream import Stream
from tinybert_dist.training.agreement import add_up, agree
from tinybert_dist.training.checkpoint import Checkpoint, Checkpoints
from tinybert_dist.training.feed import Feed, PreparedFeed, Share
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
from tinybert_dist.training.strategy import autocast, on_main, seed_draws
from tinybert_dist.training.stream_feed import StreamFeed
from tinybert_dist.training.tracking import Tracker
from tinybert_dist.training.utilisation import Utilisation
from tinybert_dist.training.window import Window
from tinybert_dist.training.wrap import wrap


class TrainingLoop:
    """Trains job.module to the end or to an agreed stop. Collective: every process runs it."""

    def __init__(self, job: Job, folder: RunFolder, resumed: Checkpoint | None):
        options, accelerator = job.options, job.accelerator
        self.job, self.folder, self.options, self.accelerator = job, folder, options, accelerator
        self.checkpoints = Checkpoints(
            folder.path / "checkpoints", options.keep_checkpoints, folder.attempt.require_ours
        )
        kind = StreamFeed if isinstance(job.dataset, Stream) else PreparedFeed
        self.feed: Feed = kind(job, resumed.state if resumed else None)
        steps_per_epoch = self.feed.steps_per_epoch
        self.total_steps = options.max_steps or math.ceil(steps_per_epoch * options.num_train_epochs)
        self.eval_step = options.eval_step or steps_per_epoch
        self.save_step = options.save_step or self.eval_step
        self.step, self.best, self.evaluated, self.tokens_seen = 0, None, {}, 0.0
        if resumed:
            state = resumed.state
            self.step, self.best, self.evaluated = state["step"], state["best"], state["evaluated"]
            self.tokens_seen = state.get("tokens_seen", 0.0)  # older ones did not count
        self.start_step, self.taken_s = self.step, 0.0
        self.frozen, self.reached = self._freeze_unreached()
        if resumed:
            job.module.load_state_dict(resumed.parameters())
        self.trained = wrap(accelerator, job.module, options)
        if resumed:
            self.trained.load_moments(resumed.moments(), self.step)
        self.term_weights = torch.tensor(list(job.module.term_weights.values()), device=accelerator.device)
        self.saved_step = self.step if resumed else -1
        self.counts: dict[str, float] = {}  # of the last step; "data/...": since the run began
        self.utilisation = Utilisation(job)

    def run(self, stop: StopRequest, tracker: Tracker) -> str:
        """Returns "" when all steps are done, else the reason of the stop."""
        options, accelerator = self.options, self.accelerator
        progress = ProgressLine(self.total_steps, is_main=accelerator.is_main_process, start_step=self.step)
        shares, started_at = self.feed.shares(self.step, self.total_steps), time.monotonic()
        stop_reason, window = "", Window(self.job.module.term_weights)
        while self.step < self.total_steps and not stop_reason:
            beat("fetch", self.step + 1)
            # before the first step the loader starts and fills: no sign that it cannot keep up
            with window.waiting() if self.step > self.start_step else window.paused():
                share = next(shares)
            stop_ranks = self.optimizer_step(share, window, bool(stop))
            self.step += 1
            last = self.step == self.total_steps
            if self.step == 1:
                check_gradients_arrive(self.trained.moments(), self.reached)
            if self._is_checked(self.step):
                check_equal(accelerator, "weight", self.trained.whole_weights(), self.step)
            values = {}
            if self.step == 1 or self.step % options.logging_steps == 0 or last:
                values = self._progress() | window.values()
                values |= self.utilisation.values(values["throughput/tokens_per_s"])
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
        self.taken_s = time.monotonic() - started_at
        tracker.summary({"step": self.step, **{f"best/{k}": v for k, v in (self.best or {}).items()}})
        if self.best:
            tracker.summary({"score": self.best["score"]})
        return stop_reason

    def optimizer_step(self, share: Share, window: Window, stop: bool) -> list[int]:
        """One optimizer step over this process's share; returns the processes asked to stop."""
        accelerator, device, job = self.accelerator, self.accelerator.device, self.job
        totals = add_up(accelerator, job.module, share, self.feed.is_even)
        missing = totals.num_micro_batches - len(share.micro_batches)
        micro_batches = share.micro_batches + [(0, self.feed.dummy())] * missing
        loss_sums = torch.zeros(len(job.module.term_weights), dtype=torch.float64, device=device)
        for i, (index, host_batch) in enumerate(micro_batches):
            batch = host_batch.to(device)
            beat("forward")
            targets = job.targets(batch)
            seed_draws(
                device, draw_seed(self.options.seed, self.step, index)
            )  # dropout, whatever the process
            is_last = i == len(micro_batches) - 1
            with self.trained.micro_batch(is_last):
                sums = self.trained(batch, targets)
                weight = 0.0 if batch.is_dummy else 1.0
                terms = torch.stack([sums[t] / totals.denominators[t] for t in job.module.term_weights])
                loss = (terms * weight) @ self.term_weights.to(terms.dtype)
                beat("backward")
                # times the processes: undoes the wrapper's mean over them
                self.trained.backward(loss * accelerator.num_processes)
            loss_sums += terms.detach().double() * weight
        beat("reduce")
        if self._is_checked(self.step + 1):
            check_equal(accelerator, "gradient", self.trained.whole_gradients(), self.step + 1)
        grad_norm = self.trained.gradient_norm()
        verdict = agree(accelerator, job.module, totals, loss_sums, grad_norm, stop)
        check_finite(verdict.losses, verdict.grad_norm, verdict.bad_ranks, self.step + 1)
        beat("optimize")
        self.rate = self._learning_rate()
        self.trained.step(verdict.grad_norm, self.rate)
        self.counts = verdict.counts
        self.tokens_seen += self.counts["tokens"]
        window.add(verdict.losses, verdict.grad_norm, self.counts)
        return verdict.stop_ranks

    def _is_checked(self, step: int) -> bool:
        return step == 1 or step % self.options.checksum_step == 0

    def _progress(self) -> dict[str, float]:
        on_gpu = self.accelerator.device.type == "cuda"
        used_bytes = torch.cuda.max_memory_allocated() if on_gpu else psutil.Process().memory_info().rss
        return {
            "epoch": self.step / self.feed.steps_per_epoch,
            "learning_rate": self.rate,
            "data/tokens_seen": self.tokens_seen,
            "throughput/memory_gib": used_bytes / 2**30,
        }

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
            "constants": self.feed.constants,
            "position": self.feed.position(),
            "tokens_seen": self.tokens_seen,
            "identity": self.folder.identity,
        }
        self.trained.publish()
        parameters, moments = self.job.module.state_dict(), self.trained.moments()
        on_main(self.accelerator, lambda: self.checkpoints.save(parameters, moments, state) and None)
        self.saved_step = self.step

    def _freeze_unreached(self) -> tuple[list[str], list[str]]:
        # one throw-away forward and backward on the unwrapped module
        batch = self.feed.probe().to(self.accelerator.device)
        module = self.job.module.to(self.accelerator.device)
        with autocast(self.accelerator):
            return module.freeze_unreached(module(batch, self.job.targets(batch)))
