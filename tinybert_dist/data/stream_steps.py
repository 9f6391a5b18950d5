"""The steps of a stream for one process: its lanes, divided over loader workers and put together again."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

from torch.utils.data import IterableDataset, get_worker_info

from tinybert_dist.config import UserError
from tinybert_dist.data.batches import prefetched
from tinybert_dist.data.lanes import Turns
from tinybert_dist.data.sources import Piece
from tinybert_dist.data.stream_lane import Lane, Position, Reading, Rows
from tinybert_dist.data.text import BadRecords

# a worker at a new block gives nothing for a while; with 2, two workers gave 1.5 times one, now 1.7
STEPS_AHEAD = 8


@dataclass
class StepRows:
    """What lanes give to one step: by lane its rows, its position after them, and how much it has read.

    refused: the user's mistake that is in the way instead.
    """

    rows: dict[int, Rows] = field(default_factory=dict)
    positions: dict[int, Position] = field(default_factory=dict)
    num_read: dict[int, tuple[int, int]] = field(default_factory=dict)
    refused: str = ""


@dataclass
class LaneSteps(IterableDataset):
    """Iterated: of steps [first_step, num_steps), what the lanes of `positions` give.

    pieces: of every lane. positions: of the lanes of one process; a loader worker takes its part of them.
    """

    pieces: Sequence[Sequence[Piece]]
    reading: Reading
    turns: Turns
    block_rows: int
    positions: Mapping[int, Position]
    first_step: int
    num_steps: int

    def __iter__(self) -> Iterator["StepRows"]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        lanes = [
            Lane(number, self.pieces[number], self.reading, self.block_rows, self.positions[number])
            for number in sorted(self.positions)[first::every]
        ]
        told: set[str] = set()
        for step in range(self.first_step, self.num_steps):
            counts = self.turns.counts(step)
            asked = [lane for lane in lanes if counts[lane.number]]
            try:
                rows = {lane.number: lane.take(counts[lane.number]) for lane in asked}
            except UserError as error:  # torch would wrap it into a traceback
                yield StepRows(refused=str(error))
                return
            for lane in asked:
                _tell_of_bad_records(lane.bad, told)
            positions = {lane.number: lane.position for lane in asked}
            num_read = {lane.number: lane.num_read for lane in asked}
            yield StepRows(rows, positions, num_read)

    def loader(self, *, num_workers: int, timeout_s: float) -> Iterator[StepRows]:
        """One item a step, whatever number of workers reads.

        Raises UserError for a mistake in the data, WorkerFailed as `prefetched`.
        """
        per_step = max(1, num_workers)
        items = prefetched(
            self,
            self.first_step,
            num_workers=num_workers,
            timeout_s=timeout_s,
            items_per_step=per_step,
            items_ahead=STEPS_AHEAD,
        )
        with closing(items):
            for _ in range(self.first_step, self.num_steps):
                step = StepRows()
                for part in islice(items, per_step):
                    if part.refused:
                        raise UserError(part.refused)
                    assert not step.rows.keys() & part.rows.keys(), "a lane is read by one worker"
                    step.rows |= part.rows
                    step.positions |= part.positions
                    step.num_read |= part.num_read
                yield step


def _tell_of_bad_records(bad: BadRecords, told: set[str]) -> None:
    # where the first of each kind is; how many there are stands in the log
    for kind in bad.first.keys() - told:
        print(f"note: {bad.first[kind]}: {kind}; such records are passed over", file=sys.stderr, flush=True)
        told.add(kind)
