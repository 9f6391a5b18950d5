"""Examples to token rows."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tinybert_dist.config import UserError
from tinybert_dist.data.tokens import TokenDataset

logger = logging.getLogger(__name__)

ROWS_PER_CALL = 4096

PlaceT = TypeVar("PlaceT")


class Example(NamedTuple):
    """One or two texts; label: class index in the order of the spec, value of a regression, or None."""

    text: str
    text_pair: str | None
    label: float | None


class TokenRow(NamedTuple):
    """Ids (uint32) of an example; `segment_b` as in tokens.Sample; whether the texts were cut."""

    input_ids: np.ndarray
    segment_b: int
    label: float | None
    is_cut: bool


class Origin(NamedTuple):
    """Where the examples of a split come from: example i stands on line lines[i] of file.

    lines: int64; of several files strings `name:line`, and `file` is the folder.
    """

    file: Path
    lines: np.ndarray

    @classmethod
    def of(cls, file: Path, places: Sequence[tuple[Path, int]]) -> "Origin":
        """From the (file, line) of every example."""
        if all(path == file for path, _ in places):
            return cls(file, np.array([line for _, line in places], np.int64))
        return cls(file, np.array([f"{path.name}:{line}" for path, line in places]))


def encode(
    examples: Sequence[Example], tokenizer: Any, max_seq_length: int, origins: Origin | None = None
) -> TokenDataset:
    """Token rows of `examples`, in memory; see encode_rows. Without any label the dataset's labels are None.

    How many were cut is logged, with the first file and line when `origins` is given.
    """
    rows = [row for _, row in encode_rows(enumerate(examples), tokenizer, max_seq_length)]
    if cut := [i for i, row in enumerate(rows) if row.is_cut]:
        first = f"{origins.file}:{origins.lines[cut[0]]}" if origins is not None else ""
        warn_of_cuts(len(cut), len(rows), max_seq_length, first)
    labels = [example.label for example in examples]
    input_ids: list[Any] = [row.input_ids for row in rows]
    segment_b = [row.segment_b for row in rows]
    return TokenDataset.from_rows(
        input_ids, segment_b, None if all(label is None for label in labels) else labels
    )


def encode_rows(
    examples: Iterable[tuple[PlaceT, Example]], tokenizer: Any, max_seq_length: int
) -> Iterator[tuple[PlaceT, TokenRow]]:
    """Every (place, example) as (place, row), cut to `max_seq_length` tokens from the longer text first.

    Raises UserError for a slow tokenizer: it does not tell two texts apart.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path}: needs a fast one (tokenizer.json or vocab.txt)."
        )
    following = iter(examples)
    while block := list(islice(following, ROWS_PER_CALL)):
        is_pair = block[0][1].text_pair is not None
        special = tokenizer.num_special_tokens_to_add(pair=is_pair)
        if max_seq_length <= special:
            raise UserError(
                f"--max_seq_length {max_seq_length}: {special} special tokens leave no room for text."
            )
        encodings = _tokenise([example for _, example in block], tokenizer, max_seq_length)
        for (place, example), encoding in zip(block, encodings, strict=True):
            ids = np.asarray(encoding.ids, np.uint32)
            segment_b = _segment_b(encoding) if is_pair else len(ids)
            yield place, TokenRow(ids, segment_b, example.label, bool(encoding.overflowing))


def warn_of_cuts(num_cut: int, num_rows: int, max_seq_length: int, first: str) -> None:
    """Logs how many examples were longer than max_seq_length; first: where the first of them stands."""
    logger.warning(
        "%s of %s examples (%.1f %%) cut to %d tokens%s",
        f"{num_cut:,}", f"{num_rows:,}", 100 * num_cut / num_rows, max_seq_length,
        f", first {first}" if first else "",
    )  # fmt: skip


def _tokenise(examples: Sequence[Example], tokenizer: Any, max_seq_length: int) -> list[Any]:
    pairs = [example.text_pair for example in examples]
    return tokenizer(
        [example.text for example in examples],
        None if pairs[0] is None else pairs,
        truncation="longest_first",
        max_length=max_seq_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    ).encodings


def _segment_b(encoding: Any) -> int:
    # type ids only where the second text has no token: RoBERTa's are all 0
    for segments in (encoding.sequence_ids, encoding.type_ids):
        if 1 in segments:
            return segments.index(1)
    return len(encoding.ids)
