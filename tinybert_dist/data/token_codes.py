"""Token ids in bytes: one byte for each of a shard's most frequent ids, two (or three) for the others.

The first bytes of all tokens stand together (`lead`); what follows the long ones stands apart, in the same
order (`rest`). A first byte below the number of short codes counts ids by falling frequency; above, it is the
high part of an id. Half the tokens of English and Chinese text are short: 1.5 bytes where uint16 takes 2.
"""

from typing import Any, NamedTuple

import numpy as np

LEADS = 256


class Lists(NamedTuple):
    """A list of numbers for each row: that of row i is values[offsets[i] : offsets[i + 1]]."""

    values: Any  # np.ndarray or memoryview
    offsets: Any  # the same, int32 [rows + 1]


def rest_type(vocab_size: int) -> np.dtype:
    """What follows the first byte of a long code: one byte, two above 65,536 ids."""
    return np.dtype(np.uint8 if vocab_size <= 1 << 16 else np.uint16)


def num_short(vocab_size: int) -> int:
    """How many first bytes the high parts of all ids leave for short codes."""
    return min(LEADS - -(-vocab_size >> 8 * rest_type(vocab_size).itemsize), vocab_size)


def encode(ids: Lists, vocab_size: int) -> tuple[Lists, Lists, np.ndarray]:
    """Rows of ids in [0, vocab_size) -> lead, rest, short ids by falling frequency."""
    values, offsets = ids
    dtype = rest_type(vocab_size)
    by_frequency = np.argsort(-np.bincount(values, minlength=vocab_size), kind="stable")
    short_ids = by_frequency[: num_short(vocab_size)]
    lead_of = len(short_ids) + (np.arange(vocab_size) >> 8 * dtype.itemsize)
    lead_of[short_ids] = np.arange(len(short_ids))
    lead = lead_of.astype(np.uint8)[values]
    is_long = lead >= len(short_ids)
    num_long = np.zeros(len(values) + 1, np.int32)
    np.cumsum(is_long, out=num_long[1:])
    return Lists(lead, offsets), Lists(values[is_long].astype(dtype), num_long[offsets]), short_ids


def ids_by_lead(short_ids: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """int64 [256]: the id of a short code; of a long one its high part, to which `rest` is added."""
    high = np.arange(LEADS - len(short_ids)) << 8 * dtype.itemsize
    return np.concatenate([short_ids, high])
