"""What the loop is fed with, step by step: rows of a prepared dataset, or a stream of raw text."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tinybert_dist.config import UserError
from tinybert_dist.data.batches import StepBatches, delivery_rate
from tinybert_dist.data.order import Order
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.micro_batch import MicroBatch
from tinybert_dist.training.job import Job

MICRO_BATCH_TOKENS = {"cpu": 8192, "cuda": 16384}
PADDED_PIECES = 8


@dataclass
class Share:
    """What one process computes in an optimizer step.

    micro_batches: at least one, each with the number its draws are keyed by. counts: of this process since
    the run began, by name, for the log. refused: the mistake in the data that is in the way.
    """

    micro_batches: list[tuple[int, MicroBatch]]
    counts: dict[str, float] = field(default_factory=dict)
    refused: UserError | None = None


class Feed(Protocol):
    """A run's samples for one process.

    constants: kept when the run goes on with other processes, so that the cut of a step, and with it every
    draw keyed by (seed, step, micro-batch), stays the same. is_even: whether all processes have as many
    micro-batches in every step. facts: for the description of the run.
    """

    constants: dict[str, Any]
    steps_per_epoch: int
    is_even: bool
    facts: dict[str, str]

    def shares(self, first_step: int, num_steps: int) -> Iterator[Share]:
        """Of steps [first_step, num_steps), as the process needs them."""
        ...

    def probe(self) -> MicroBatch:
        """Real samples, the same on every process, for a pass before training."""
        ...

    def dummy(self) -> MicroBatch:
        """Holds the place of a micro-batch where others compute one more."""
        ...

    def position(self) -> Any:
        """What a checkpoint keeps to go on after the last share taken; JSON values. Collective."""
        ...

    def delivery_rate(self, seconds: float) -> float:
        """Real tokens per second that a loader gets ready when it is alone, measured for `seconds`."""
        ...


def micro_batch_constants(job: Job) -> tuple[int, int, int]:
    """Of a first start: micro-batches over all processes, pieces each is cut into, tokens of one at most."""
    options, accelerator = job.options, job.accelerator
    num_micro_batches, num_pieces = options.gradient_accumulation_steps * accelerator.num_processes, 1
    if job.collate.layout == "padded":
        # cut finer, sorted by length: 65 % padding in one piece, 12 % in 8
        num_pieces = max(1, min(PADDED_PIECES, options.train_batch_size // (2 * num_micro_batches)))
    max_tokens = options.micro_batch_tokens or MICRO_BATCH_TOKENS[accelerator.device.type]
    return num_micro_batches, num_pieces, max_tokens


class PreparedFeed:
    """Rows of a TokenDataset, in the order of (seed, epoch): the step says where it stands."""

    is_even = True

    def __init__(self, job: Job, state: dict[str, Any] | None):
        """state: of the checkpoint to go on from."""
        assert isinstance(job.dataset, TokenDataset)
        self._job, self._dataset = job, job.dataset
        self._order = Order(len(job.dataset), job.options.train_batch_size, job.options.seed)
        self.steps_per_epoch = self._order.steps_per_epoch
        num_micro_batches, num_pieces, max_tokens = micro_batch_constants(job)
        first = {"num_micro_batches": num_micro_batches * num_pieces, "micro_batch_tokens": max_tokens}
        self.constants = state["constants"] if state else first
        num_rows, num_tokens = len(job.dataset), job.dataset.num_tokens
        step_tokens = num_tokens * self._order.batch_size // num_rows
        self.facts = {
            "training rows": f"{num_rows:,} ({num_tokens:,} tokens)",
            "optimizer step": f"{self._order.batch_size} examples in {self.constants['num_micro_batches']}+ "
            f"micro-batches, {job.collate.layout} rows, about {step_tokens:,} tokens",
        }

    def _batches(self, rank: int, world_size: int) -> StepBatches:
        constants = self.constants
        limits = constants["num_micro_batches"], constants["micro_batch_tokens"]
        job = self._job
        return StepBatches(self._dataset, self._order, job.collate, *limits, rank, world_size, job.transform)

    def shares(self, first_step: int, num_steps: int) -> Iterator[Share]:
        """As Feed."""
        options, accelerator = self._job.options, self._job.accelerator
        loader = self._batches(accelerator.process_index, accelerator.num_processes).loader(
            first_step,
            num_steps,
            num_workers=options.num_workers,
            timeout_s=options.hang_timeout_s / 2,  # the worker is named before this process is
            pin_memory=accelerator.device.type == "cuda",
        )
        return map(Share, loader)

    def probe(self) -> MicroBatch:
        """As Feed."""
        return self._batches(0, 1)[0][0][1]

    def dummy(self) -> MicroBatch:
        """As Feed."""
        return replace(self._job.collate(self._dataset.fetch([0])), is_dummy=True)

    def position(self) -> None:
        """As Feed."""
        return None

    def delivery_rate(self, seconds: float) -> float:
        """As Feed: of this process's part of the steps."""
        accelerator = self._job.accelerator
        return delivery_rate(self._batches(accelerator.process_index, accelerator.num_processes), seconds)
