"""Examples to token rows."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tinybert_dist.config import UserError
from tinybert_dist.data.tokens import TokenDataset

logger = logging.getLogger(__name__)

ROWS_PER_CALL = 4096
PROGRESS_ABOVE_ROWS = 50_000


class Example(NamedTuple):
    """One or two texts; label: class index in the order of the spec, value of a regression, or None."""

    text: str
    text_pair: str | None
    label: float | None


class Origin(NamedTuple):
    """Where the examples of a split come from: example i stands on line lines[i] (int64) of file."""

    file: Path
    lines: np.ndarray


def encode(
    examples: Sequence[Example], tokenizer: Any, max_seq_length: int, origins: Origin | None = None
) -> TokenDataset:
    """Token rows of `examples`, cut to `max_seq_length` tokens from the longer text first.

    How many were cut is logged, with the first file and line when `origins` is given. Without any label the
    dataset's labels are None. Raises UserError for a slow tokenizer: it does not tell two texts apart.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path}: needs a fast one (tokenizer.json or vocab.txt)."
        )
    special = tokenizer.num_special_tokens_to_add(pair=bool(examples) and examples[0].text_pair is not None)
    if max_seq_length <= special:
        raise UserError(
            f"--max_seq_length {max_seq_length}: {special} special tokens leave no room for text."
        )
    input_ids: list[Any] = []
    segment_b: list[int] = []
    truncated: list[int] = []
    quiet = True if len(examples) <= PROGRESS_ABOVE_ROWS else None
    with tqdm(total=len(examples), desc="tokenise", unit=" examples", disable=quiet) as progress:
        for start in range(0, len(examples), ROWS_PER_CALL):
            for encoding in _tokenise(examples[start : start + ROWS_PER_CALL], tokenizer, max_seq_length):
                if encoding.overflowing:
                    truncated.append(len(input_ids))
                input_ids.append(np.asarray(encoding.ids, np.uint32))
                segment_b.append(_segment_b(encoding))
            progress.update(len(input_ids) - start)
    if truncated:
        first = f", first {origins.file}:{origins.lines[truncated[0]]}" if origins is not None else ""
        share_pct = 100 * len(truncated) / len(examples)
        logger.warning(
            "%s of %s examples (%.1f %%) cut to %d tokens%s",
            f"{len(truncated):,}", f"{len(examples):,}", share_pct, max_seq_length, first,
        )  # fmt: skip
    labels = [example.label for example in examples]
    return TokenDataset.from_rows(
        input_ids, segment_b, None if all(label is None for label in labels) else labels
    )


def _tokenise(examples: Sequence[Example], tokenizer: Any, max_seq_length: int) -> list[Any]:
    pairs = [example.text_pair for example in examples]
    return tokenizer(
        [example.text for example in examples],
        None if pairs[0] is None else pairs,
        truncation="longest_first",
        max_length=max_seq_length,
        padding=False,
    ).encodings


def _segment_b(encoding: Any) -> int:
    # type ids only where the second text has no token: RoBERTa's are all 0
    for segments in (encoding.sequence_ids, encoding.type_ids):
        if 1 in segments:
            return segments.index(1)
    return len(encoding.ids)
