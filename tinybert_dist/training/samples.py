"""Some rows of predictions.tsv to look at: the mistakes first, the surest of them on top."""

import csv
import heapq
from collections.abc import Iterator
from pathlib import Path


def worst_predictions(path: str | Path, limit: int) -> tuple[list[str], list[list[str | float]]]:
    """Columns and at most `limit` rows of a predictions.tsv (see data.predictions.write_predictions).

    Classes: text, label, prediction, its probability; the wrong ones first, of these the surest; then the
    right ones, the least sure first, as are those without a label. Regression: the largest error first.
    """
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = next(reader)
        first_text = len(header) - (2 if header[-1] == "text_pair" else 1)
        is_regression = first_text == 3
        measure = "error" if is_regression else "probability"
        ranked = heapq.nsmallest(limit, _ranked(reader, first_text, is_regression))
    return [*header[first_text:], "label", "prediction", measure], [row for *_, row in ranked]


def _ranked(
    rows: Iterator[list[str]], first_text: int, is_regression: bool
) -> Iterator[tuple[float, int, list[str | float]]]:
    for number, row in enumerate(rows):
        _, label, prediction, *values = row[:first_text]
        if is_regression:
            error = abs(float(prediction) - float(label)) if label else 0.0
            yield -error, number, [*row[first_text:], label, prediction, error]
        else:
            probability = max(map(float, values))
            is_wrong = label not in ("", prediction)
            rank = -probability if is_wrong else probability
            yield rank, number, [*row[first_text:], label, prediction, probability]
