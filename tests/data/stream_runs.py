"""Streams of small texts: writing the texts, running the batches of every process, rows of an epoch."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tinybert_dist.data.batches import Collator
from tinybert_dist.data.corpus_part import Recipe
from tinybert_dist.data.stream import open_stream
from tinybert_dist.data.stream_batches import StreamBatches
from tinybert_dist.data.stream_lane import Lane, Position

BATCH = 16


def write(path, lines):
    path.parent.mkdir(exist_ok=True)
    content = ("\n".join(lines) + "\n").encode() if lines else b""
    if ".txt" not in path.name:
        rows = [{"text": line} for line in lines if line]
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=40)
            return
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        content = zstandard.compress(content)
    path.write_bytes(content)


def stream_of(path, tokenizer, mode="line", on_bad_record="error", seed=7, length=32):
    return open_stream(str(path), tokenizer, Recipe(mode, length, seed), on_bad_record=on_bad_record)


def batches_of(
    stream,
    rank=0,
    world_size=1,
    positions=None,
    num_micro_batches=4,
    num_lanes=12,
    batch_size=BATCH,
    max_tokens=100,
):
    lanes, weights = stream.deal(num_lanes, stream.rows_per_byte)
    limits = {"batch_size": batch_size, "num_micro_batches": num_micro_batches, "max_tokens": max_tokens}
    place = {"rank": rank, "world_size": world_size, "positions": positions}
    return StreamBatches(lanes, weights, stream.reading, Collator("packed", 0), **limits, **place)


def run(stream, first_step, num_steps, world_size=1, workers=0, positions=None, **options):
    """Micro-batches of every step by number, over all processes; positions after them; records read."""
    steps = [{} for _ in range(first_step, num_steps)]
    after, num_read = {}, np.zeros(2, int)
    for rank in range(world_size):
        batches = batches_of(stream, rank, world_size, positions, **options)
        loader = batches.loader(first_step, num_steps, num_workers=workers)
        for step, micro_batches in zip(steps, loader, strict=True):
            for number, batch in micro_batches:
                assert number not in step
                step[number] = (batch.input_ids.tolist(), batch.token_type_ids.tolist())
        assert not after.keys() & batches.positions.keys()
        after |= batches.positions
        num_read += batches.num_read
    return steps, after, num_read


def epochs_of(lane, num_epochs=1):
    """A lane's rows, epoch by epoch."""
    epochs = [[] for _ in range(num_epochs)]
    while len((part := lane.take(1)).lengths):
        epoch, piece, records, rows, *_ = lane.position
        epoch -= rows == piece == records == 0  # it was the last row of an epoch
        if epoch == num_epochs:
            break
        epochs[epoch].append(tuple(part.input_ids.tolist()))
    return epochs


def rows_of(stream, num_lanes=12):
    """Rows of an epoch, lane by lane."""
    lanes, _ = stream.deal(num_lanes, stream.rows_per_byte)
    lanes = [Lane(number, pieces, stream.reading, 8, Position()) for number, pieces in enumerate(lanes)]
    return [row for lane in lanes for row in epochs_of(lane)[0]]


def rows_in(step, tokenizer):
    """The rows of a step's micro-batches; [CLS] begins every one."""
    rows = []
    for ids, _ in step.values():
        starts = [i for i, id_ in enumerate(ids[0]) if id_ == tokenizer.cls_token_id]
        rows += [tuple(ids[0][a:b]) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    return rows


def lines_as_rows(tokenizer, lines):
    return [
        tuple(tokenizer(line, truncation=True, max_length=32)["input_ids"]) for line in lines if line.strip()
    ]
