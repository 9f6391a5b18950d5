"""Label names: which values of a column are labels, and how two models' orders of them fit together."""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tinybert_dist.config import UserError

logger = logging.getLogger(__name__)

MAX_LABEL_CHARS = 64
REGULAR_SHARE = 0.99
WHOLE_NUMBER = re.compile(r"([+-]?\d+)(\.0+)?")
UNNAMED = re.compile(r"LABEL_(\d+)")


def canonical_label(value: str) -> str:
    """The name of a label: without spaces around it, and without the ".0" of a float column's 1.0."""
    value = value.strip()
    whole = WHOLE_NUMBER.fullmatch(value)
    return whole[1] if whole else value


def find_labels(counts: Mapping[str, int], num_labels: int | None = None) -> tuple[str, ...]:
    """The labels, in order, of a column whose distinct values occur `counts` times; stray values left out.

    Whole numbers are ordered by value, names alphabetically. A value is stray, the sign of a malformed row
    rather than one more class, when
    - it is longer than 64 characters: a label is a name, not a sentence; or
    - it is no whole number while at least 99 % of the rows hold whole numbers; or
    - it stands in one row only while values seen more often make up at least 99 % of the rows.
    With `num_labels` equal to the number of values of at most 64 characters all of those are labels: that is
    how a real class with one example is declared, or by naming all labels. Raises UserError, with the counts,
    when `num_labels` differs from what remains, and when less than two labels do.
    """
    short = {value: n for value, n in counts.items() if value and len(value) <= MAX_LABEL_CHARS}
    labels = short if len(short) == num_labels else _regular(short)
    found = ", ".join(f"{label} ({labels[label]} rows)" for label in _ordered(labels)[:20])
    if num_labels is not None and len(labels) != num_labels:
        raise UserError(
            f"--num_labels {num_labels}, but the training data has {len(labels)} labels: {found}. "
            "Correct --num_labels or name the labels with --labels."
        )
    if len(labels) < 2:
        raise UserError(
            f"the training data has {len(labels)} label(s): {found or 'none'}. Classification needs two "
            "or more; check --label_column, or pass --task_mode regression for numbers."
        )
    return tuple(_ordered(labels))


def all_fractional(counts: Mapping[str, int]) -> bool:
    """Whether all values are finite numbers and one has a fraction: a score to regress, not a class."""
    try:
        values = [float(value) for value in counts]
    except ValueError:
        return False
    return all(map(math.isfinite, values)) and any(not value.is_integer() for value in values)


def map_labels(
    data_labels: Sequence[str], model_labels: Sequence[str] | None, num_model_labels: int | None = None
) -> np.ndarray:
    """int64[C]: `logits[:, index]` puts a model's logits into the order of `data_labels`, by name.

    Names match exactly, or ignoring case. A model without names (None, or transformers' LABEL_0, LABEL_1 ...)
    of `num_model_labels` classes is taken to be in the data's order, with a warning. Raises UserError showing
    both lists otherwise.
    """
    data = [str(label) for label in data_labels]
    model = None if model_labels is None else [str(label) for label in model_labels]
    for fold in (str, str.casefold):
        index = None if model is None else _positions([fold(x) for x in data], [fold(x) for x in model])
        if index is not None:
            return index
    unnamed = model is None or all(m and int(m[1]) == i for i, m in enumerate(map(UNNAMED.fullmatch, model)))
    count = num_model_labels if model is None else len(model)
    if unnamed and count in {None, len(data)}:
        logger.warning("the model does not name its labels; taken to be in this order: %s", ", ".join(data))
        return np.arange(len(data))
    shown = "no names" + (f", {count} classes" if count is not None else "") if model is None else str(model)
    raise UserError(
        f"labels do not match by name. The data has {data}, the model has {shown}. Use the model's names in "
        "the data, or correct id2label in the model's config.json."
    )


def _regular(counts: Mapping[str, int]) -> dict[str, int]:
    labels = dict(counts)
    for is_regular in (WHOLE_NUMBER.fullmatch, lambda value: counts[value] > 1):
        regular = {value: n for value, n in labels.items() if is_regular(value)}
        if len(regular) >= 2 and sum(regular.values()) >= REGULAR_SHARE * sum(labels.values()):
            labels = regular
    return labels


def _ordered(labels: Iterable[str]) -> list[str]:
    labels = list(labels)
    whole = all(WHOLE_NUMBER.fullmatch(label) for label in labels)
    return sorted(labels, key=int if whole else None)


def _positions(data: Sequence[str], model: Sequence[str]) -> np.ndarray | None:
    if Counter(data) != Counter(model) or len(set(model)) != len(model):
        return None
    return np.array([model.index(label) for label in data], dtype=np.int64)
