"""The loop fed from raw text: a process's lanes, and its part of every step."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from tinybert_dist.config import UserError
from tinybert_dist.data.lanes import num_lanes
from tinybert_dist.data.stream import Stream
from tinybert_dist.data.stream_batches import StreamBatches
from tinybert_dist.data.stream_lane import Position
from tinybert_dist.micro_batch import MicroBatch
from tinybert_dist.training.feed import Share, micro_batch_constants
from tinybert_dist.training.job import Job

UNEVEN = 1.25  # times its share: worth a word


class StreamFeed:
    """Rows of raw text, read while training runs."""

    def __init__(self, job: Job, state: dict[str, Any] | None):
        """state: of the checkpoint to go on from."""
        assert isinstance(job.dataset, Stream)
        self._job, self._stream, options, accelerator = job, job.dataset, job.options, job.accelerator
        self.is_even = accelerator.num_processes == 1
        num_micro_batches, num_pieces, max_tokens = micro_batch_constants(job)
        first: dict[str, Any] = {
            "num_micro_batches": num_micro_batches,
            "pieces_per_micro_batch": num_pieces,
            "micro_batch_tokens": max_tokens,
            "num_lanes": num_lanes(num_micro_batches),
            "rows_per_byte": self._stream.rows_per_byte,
        }
        self.constants = state["constants"] if state else first
        estimate = self.constants["rows_per_byte"]
        self._lanes, self._weights = self._stream.deal(self.constants["num_lanes"], estimate)
        num_rows = sum(self._weights) if estimate else (options.max_steps or 0) * options.train_batch_size
        if not num_rows:
            raise UserError("--streaming: the size of this text is not known; say how far with --max_steps.")
        self.steps_per_epoch = math.ceil(num_rows / options.train_batch_size)
        self._batches = StreamBatches(
            self._lanes,
            self._weights,
            self._stream.reading,
            job.collate,
            batch_size=options.train_batch_size,
            num_micro_batches=self.constants["num_micro_batches"],
            num_pieces=self.constants["pieces_per_micro_batch"],
            max_tokens=self.constants["micro_batch_tokens"],
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            positions={lane: Position(*p) for lane, p in enumerate(state["position"])} if state else None,
        )
        self.facts = self._describe(num_rows)

    def _describe(self, num_rows: float) -> dict[str, str]:
        batch_size, constants = self._job.options.train_batch_size, self.constants
        row_tokens = self._stream.sample.num_tokens / len(self._stream.sample)
        size = f"about {num_rows:,.0f} ({num_rows * row_tokens:,.0f} tokens; estimated)"
        facts = {
            "training rows": f"{size if constants['rows_per_byte'] else 'unknown'}, streamed from "
            f"{len(self._stream.pieces):,} pieces of raw text in {sum(map(bool, self._lanes))} lanes",
            "optimizer step": f"{batch_size} examples in {constants['num_micro_batches']}+ micro-batches, "
            f"{self._job.collate.layout} rows, about {batch_size * row_tokens:,.0f} tokens",
        }
        num_groups = constants["num_micro_batches"]
        group_weights = [sum(self._weights[m::num_groups]) for m in range(num_groups)]
        largest = max(group_weights) * num_groups / sum(group_weights)
        if largest > UNEVEN:
            facts["uneven"] = (
                f"one of {num_groups} micro-batches has {largest:.1f} times its share and the others wait: "
                "a compressed file is read by one process; unpack the text, or divide it into more files"
            )
        return facts

    def shares(self, first_step: int, num_steps: int) -> Iterator[Share]:
        """As Feed."""
        options = self._job.options
        loader = self._batches.loader(
            first_step,
            num_steps,
            num_workers=options.num_workers,
            pin_memory=self._job.accelerator.device.type == "cuda",
            timeout_s=options.hang_timeout_s / 2,
        )
        try:
            for micro_batches in loader:
                yield self._share(micro_batches)
        except UserError as error:  # the others shall hear of it
            yield replace(self._share([]), refused=error)

    def _share(self, micro_batches: list[tuple[int, MicroBatch]]) -> Share:
        records, bad_records = self._batches.num_read
        counts = {"data/records_read": float(records), "data/bad_records": float(bad_records)}
        return Share(micro_batches or [(0, self.dummy())], counts)

    def probe(self) -> MicroBatch:
        """As Feed."""
        return self._job.collate(self._stream.sample.fetch(range(min(32, len(self._stream.sample)))))

    def dummy(self) -> MicroBatch:
        """As Feed."""
        return replace(self._job.collate(self._stream.sample.fetch([0])), is_dummy=True)

    def position(self) -> list[list[int]]:
        """As Feed: of every lane."""
        accelerator = self._job.accelerator
        table = torch.zeros(len(self._lanes), len(Position._fields), dtype=torch.int64)
        for lane, position in self._batches.positions.items():
            table[lane] = torch.tensor(position)
        return accelerator.reduce(table.to(accelerator.device), "sum").tolist()

    def delivery_rate(self, seconds: float) -> float:
        """As Feed: of whole blocks of text."""
        return self._batches.delivery_rate(seconds)
