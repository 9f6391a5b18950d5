"""Predictions on disk: a table to look at, and the files of the GLUE leaderboard."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinybert_dist.config import UserError
from tinybert_dist.data.encoding import Example
from tinybert_dist.data.glue import TaskSpec
from tinybert_dist.files import write_atomic

LEADERBOARD_FILES = {
    ("CoLA", "test"): "CoLA.tsv",
    ("SST-2", "test"): "SST-2.tsv",
    ("MRPC", "test"): "MRPC.tsv",
    ("QQP", "test"): "QQP.tsv",
    ("STS-B", "test"): "STS-B.tsv",
    ("MNLI", "test_matched"): "MNLI-m.tsv",
    ("MNLI", "test_mismatched"): "MNLI-mm.tsv",
    ("QNLI", "test"): "QNLI.tsv",
    ("RTE", "test"): "RTE.tsv",
    ("WNLI", "test"): "WNLI.tsv",
}
STSB_RANGE = (0.0, 5.0)


def write_predictions(
    path: str | Path,
    spec: TaskSpec,
    lines: Sequence[int] | np.ndarray,
    examples: Sequence[Example],
    logits: np.ndarray,
) -> None:
    """Writes a tab-separated file: line of the input file, label, prediction, probabilities, texts.

    `logits` [N, C] in the order of spec.labels give one column `p(NAME)` per class; for a regression they are
    the N predicted values. An unknown label is an empty field. Read it with quoting off: tabs and line breaks
    inside a text or a name are written as spaces, so that every example is one line.
    """
    logits = _checked(spec, logits)
    assert len(lines) == len(examples) == len(logits), (len(lines), len(examples), len(logits))
    is_pair = any(example.text_pair is not None for example in examples)
    texts = ["text", "text_pair"] if is_pair else ["text"]
    names = [_one_line(label) for label in spec.labels]
    regression = spec.mode == "regression"
    probabilities = np.zeros((len(logits), 0)) if regression else _softmax(logits)
    out = io.StringIO()
    print("line", "label", "prediction", *(f"p({name})" for name in names), *texts, sep="\t", file=out)
    for i, (line, example) in enumerate(zip(lines, examples, strict=True)):
        if regression:
            prediction, label = f"{logits[i]:.6g}", "" if example.label is None else f"{example.label:.6g}"
        else:
            prediction = names[int(logits[i].argmax())]
            label = "" if example.label is None else names[int(example.label)]
        columns = [str(line), label, prediction, *(f"{p:.6f}" for p in probabilities[i])]
        columns += [_one_line(example.text), *([_one_line(example.text_pair or "")] if is_pair else [])]
        print(*columns, sep="\t", file=out)
    write_atomic(path, out.getvalue())


def write_glue_submission(
    folder: str | Path, spec: TaskSpec, split: str, logits: np.ndarray, lines: np.ndarray | None = None
) -> Path:
    """Writes the leaderboard's file for a test split, header `index<TAB>prediction`, and returns its path.

    Classes go by name, STS-B values clipped to 0..5 with 3 decimals. With `lines`, the 1-based lines of the
    test file (header on 1) of the predictions, raises UserError if one is missing: the leaderboard
    wants all. Raises UserError for a task or split that the leaderboard does not have.
    """
    if (file := LEADERBOARD_FILES.get((spec.name, split))) is None:
        known = ", ".join(f"{task} {name}" for task, name in LEADERBOARD_FILES)
        raise UserError(f"{spec.name} {split}: the GLUE leaderboard has no such file. Known: {known}.")
    logits = _checked(spec, logits)
    if lines is not None:
        missing = np.flatnonzero(np.asarray(lines) != np.arange(2, len(logits) + 2))
        if len(lines) != len(logits) or len(missing):
            line = int(missing[0]) + 2 if len(missing) else len(logits) + 2
            raise UserError(
                f"{spec.name} {split}: line {line} of the test file has no prediction, the leaderboard "
                "wants every line. Repair the test file, or copy it again, and do not skip records."
            )
    if spec.mode == "regression":
        values = [f"{value:.3f}" for value in np.clip(logits, *STSB_RANGE)]
    else:
        values = [spec.labels[i] for i in logits.argmax(axis=1)]
    content = "index\tprediction\n" + "".join(f"{i}\t{value}\n" for i, value in enumerate(values))
    path = Path(folder) / file
    write_atomic(path, content)
    return path


def _checked(spec: TaskSpec, logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    if spec.mode == "regression":
        logits = logits.reshape(len(logits))
    else:
        assert logits.shape[1:] == (len(spec.labels),), (logits.shape, spec.labels)
    if bad := int((~np.isfinite(logits)).sum()):
        raise UserError(f"{bad} of {logits.size} predicted values are NaN or infinite: not written.")
    return logits


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _one_line(text: str) -> str:
    return " ".join(text.replace("\t", " ").splitlines())
