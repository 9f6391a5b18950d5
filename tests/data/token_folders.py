"""Token folders of drawn rows."""

import numpy as np

from tinybert_dist.data.token_writer import TokenWriter


def make_rows(num_rows=100, seed=0):
    draw = np.random.default_rng(seed)
    rows = [draw.integers(0, 1000, draw.integers(1, 20)).tolist() for _ in range(num_rows)]
    return rows, [int(draw.integers(0, len(ids) + 1)) for ids in rows]


def write(folder, rows, segment_b, labels=None, vocab_size=1000, rows_per_shard=30, **header):
    labels = labels or [None] * len(rows)
    with TokenWriter(folder, rows_per_shard=rows_per_shard, vocab_size=vocab_size, header=header) as writer:
        for ids, start, label in zip(rows, segment_b, labels, strict=True):
            writer.add(ids, start, label)
    return folder
