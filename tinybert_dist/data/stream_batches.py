"""A stream's micro-batches: what one process computes in every step, and where its lanes stand after it."""

import time
from collections.abc import Iterator, Mapping, Sequence

from tinybert_dist.data.batches import Collator
from tinybert_dist.data.lanes import Turns, block_rows
from tinybert_dist.data.order import cut
from tinybert_dist.data.sources import Piece
from tinybert_dist.data.stream_lane import Lane, Position, Reading, Rows
from tinybert_dist.data.stream_steps import LaneSteps
from tinybert_dist.micro_batch import MicroBatch


class StreamBatches:
    """The rows that the lanes l with l mod num_micro_batches == m give to a step are its micro-batch m, cut
    further where it is too long. Process m mod world_size computes it: it alone reads these lanes.

    lanes: the pieces of every lane; weights: as in Turns; positions: of lanes that have begun; num_pieces,
    max_tokens: as in `cut`, of one micro-batch. num_micro_batches, num_pieces and max_tokens are constants of
    the run, so the cut and its numbers do not depend on the processes.
    """

    def __init__(
        self,
        lanes: Sequence[Sequence[Piece]],
        weights: Sequence[float],
        reading: Reading,
        collate: Collator,
        *,
        batch_size: int,
        num_micro_batches: int,
        num_pieces: int = 1,
        max_tokens: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        positions: Mapping[int, Position] | None = None,
    ) -> None:
        self._lanes, self._reading, self._collate = lanes, reading, collate
        self._turns, self._weights = Turns(weights, batch_size, reading.seed), weights
        self._block_rows = block_rows(weights)
        self._num_micro_batches, self._limits = num_micro_batches, (num_pieces, max_tokens)
        self._own = range(rank, num_micro_batches, world_size)
        begun = positions or {}
        self.positions = {
            lane: begun.get(lane, Position())
            for lane, pieces in enumerate(lanes)
            if pieces and lane % num_micro_batches in self._own
        }
        self._num_read = {lane: tuple(position[-2:]) for lane, position in self.positions.items()}

    @property
    def num_read(self) -> tuple[int, int]:
        """Records this process's lanes have read since epoch 0 began, and bad records they passed over."""
        records, bad_records = zip((0, 0), *self._num_read.values(), strict=True)
        return sum(records), sum(bad_records)

    def loader(
        self,
        first_step: int,
        num_steps: int,
        *,
        num_workers: int,
        pin_memory: bool = False,
        timeout_s: float = 300,
    ) -> Iterator[list[tuple[int, MicroBatch]]]:
        """Of steps [first_step, num_steps): micro-batches with their numbers; perhaps none.

        `positions` are those after the last step taken. Raises UserError for a mistake in the data,
        WorkerFailed when a worker dies or is late.
        """
        steps = LaneSteps(
            self._lanes,
            self._reading,
            self._turns,
            self._block_rows,
            dict(self.positions),
            first_step,
            num_steps,
        )
        for step in steps.loader(num_workers=num_workers, timeout_s=timeout_s):
            self.positions |= step.positions
            self._num_read |= step.num_read
            batches = [batch for m in self._own for batch in self._cut(m, step.rows)]
            yield [(m, batch.pin_memory()) for m, batch in batches] if pin_memory else batches

    def delivery_rate(self, seconds: float) -> float:
        """Real tokens per second that one loader reads, tokenises and packs, measured for `seconds`."""
        number = max(self.positions, key=self._weights.__getitem__, default=0)
        lane = Lane(number, self._lanes[number], self._reading, self._block_rows, Position())
        num_tokens, elapsed_s, started = 0, 0.0, time.perf_counter()
        while elapsed_s < seconds and (rows := lane.take(self._block_rows)).lengths.size:
            num_tokens += len(rows.input_ids)
            elapsed_s = time.perf_counter() - started
        return num_tokens / elapsed_s if num_tokens else 0.0

    def _cut(self, number: int, rows: Mapping[int, Rows]) -> Iterator[tuple[int, MicroBatch]]:
        every = self._num_micro_batches
        samples = Rows.join([rows[lane] for lane in sorted(rows) if lane % every == number]).dataset()
        pieces = cut(samples.lengths, *self._limits)
        for i, piece in enumerate(piece for piece in pieces if len(piece)):
            yield number + i * every, self._collate(samples.fetch(piece))
