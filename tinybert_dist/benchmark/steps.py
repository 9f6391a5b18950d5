"""The product's own work as units to be measured: steps of its loop, teacher forwards, evaluation."""

from collections.abc import Iterator

from transformers import PreTrainedModel

from tinybert_dist.benchmark.counters import Counting
from tinybert_dist.benchmark.measure import Work
from tinybert_dist.data.batches import Collator, evaluation_batches
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.training.evaluation import predict
from tinybert_dist.training.feed import Feed, Share
from tinybert_dist.training.heartbeat import beat
from tinybert_dist.training.job import Job, Targets
from tinybert_dist.training.loop import TrainingLoop
from tinybert_dist.training.run_folder import RunFolder
from tinybert_dist.training.strategy import RunAccelerator
from tinybert_dist.training.window import Window


def loop_of(job: Job) -> TrainingLoop:
    """The loop that the job's stage would run; nothing is written."""
    return TrainingLoop(job, RunFolder(job.options.output_dir, job.stage, job.options, job.inputs), None)


PER_RUN = {"recompilations", "saved_bytes"}


def counts_per_step(steps: "Steps", repeats: int) -> dict[str, float]:
    """What counters.Counting counts in this process, of one step; recompilations and bytes of all."""
    with Counting() as counting:
        for _ in range(repeats):
            steps()
    return {n: value / (1 if n in PER_RUN else repeats) for n, value in counting.totals().items()}


class Steps:
    """Every call is an optimizer step of `loop`, batches fetched, fed by its own feed or another one."""

    def __init__(self, loop: TrainingLoop, feed: Feed | None = None):
        self._loop, self._feed = loop, feed or loop.feed
        self._shares = self._feed.shares(0, loop.total_steps)

    def __call__(self) -> Work:
        loop = self._loop
        loop.feed = self._feed
        beat("fetch", loop.step + 1)
        share = next(self._shares)
        loop.optimizer_step(share, Window(loop.job.module.term_weights), stop=False)
        loop.step += 1
        return _work_of(share)


class TeacherForwards:
    """Every call computes what a step is taught."""

    def __init__(self, teacher: Targets, accelerator: RunAccelerator, shares: Iterator[Share]):
        self._teacher, self._accelerator, self._shares = teacher, accelerator, shares

    def __call__(self) -> Work:
        share = next(self._shares)
        for _, batch in share.micro_batches:
            self._teacher(batch.to(self._accelerator.device))
        return _work_of(share)


class Evaluation:
    """Every call predicts all rows."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: TokenDataset,
        collate: Collator,
        accelerator: RunAccelerator,
        max_tokens: int,
    ):
        self._model = model.to(accelerator.device).eval()
        self._arguments = rows, collate, accelerator, max_tokens
        rank, world_size = accelerator.process_index, accelerator.num_processes
        self._work = Work.on(evaluation_batches(rows, collate, max_tokens, rank, world_size))

    def __call__(self) -> Work:
        predict(self._model, *self._arguments)
        return self._work


def _work_of(share: Share) -> Work:
    return Work.on(batch for _, batch in share.micro_batches)
