import dataclasses

import numpy as np
import pytest

from tinybert_dist.config import UserError
from tinybert_dist.data.encoding import Example
from tinybert_dist.data.glue import GLUE
from tinybert_dist.data.predictions import write_glue_submission, write_predictions


def table(path):
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines[-1] == ""
    return [line.split("\t") for line in lines[:-1]]


def test_classification_table(tmp_path):
    examples = [Example("a\tb\nc", "d\r\ne\u2028f", 0.0), Example('\u597d "q', "x", None)]
    logits = np.array([[0.0, np.log(3.0)], [1000.0, -1000.0]])
    write_predictions(tmp_path / "p.tsv", GLUE["RTE"], [2, 7], examples, logits)
    assert table(tmp_path / "p.tsv") == [
        ["line", "label", "prediction", "p(entailment)", "p(not_entailment)", "text", "text_pair"],
        ["2", "entailment", "not_entailment", "0.250000", "0.750000", "a b c", "d e f"],
        ["7", "", "entailment", "1.000000", "0.000000", '\u597d "q', "x"],
    ]


def test_regression_table(tmp_path):
    examples = [Example("a", None, 2.5), Example("b", None, None)]
    write_predictions(tmp_path / "p.tsv", GLUE["STS-B"], [2, 3], examples, np.array([[1.23456789], [-7.0]]))
    assert table(tmp_path / "p.tsv") == [
        ["line", "label", "prediction", "text"],
        ["2", "2.5", "1.23457", "a"],
        ["3", "", "-7", "b"],
    ]


def test_label_names_cannot_break_the_table(tmp_path):
    spec = dataclasses.replace(GLUE["SST-2"], labels=("a\tb", "c"))
    write_predictions(tmp_path / "p.tsv", spec, [1], [Example("x", None, 0.0)], np.array([[1.0, 0.0]]))
    assert table(tmp_path / "p.tsv")[1][:3] == ["1", "a b", "a b"]


@pytest.mark.parametrize(
    ("task", "split", "file", "logits", "expected"),
    [
        ("CoLA", "test", "CoLA.tsv", [[1, 2], [2, 1]], ["1", "0"]),
        ("SST-2", "test", "SST-2.tsv", [[1, 2], [2, 1]], ["1", "0"]),
        ("MRPC", "test", "MRPC.tsv", [[1, 2]], ["1"]),
        ("QQP", "test", "QQP.tsv", [[2, 1]], ["0"]),
        ("STS-B", "test", "STS-B.tsv", [-0.3, 2.34567, 5.4], ["0.000", "2.346", "5.000"]),
        ("MNLI", "test_matched", "MNLI-m.tsv", [[1, 2, 0]], ["entailment"]),
        ("MNLI", "test_mismatched", "MNLI-mm.tsv", [[1, 0, 3]], ["neutral"]),
        ("QNLI", "test", "QNLI.tsv", [[1, 0]], ["entailment"]),
        ("RTE", "test", "RTE.tsv", [[0, 1]], ["not_entailment"]),
        ("WNLI", "test", "WNLI.tsv", [[0, 1]], ["1"]),
    ],
)
def test_leaderboard_files(tmp_path, task, split, file, logits, expected):
    path = write_glue_submission(tmp_path, GLUE[task], split, np.array(logits))
    assert path == tmp_path / file
    assert table(path) == [["index", "prediction"], *([str(i), value] for i, value in enumerate(expected))]


def test_leaderboard_wants_every_line(tmp_path):
    logits = np.array([[1.0, 0.0]] * 3)
    write_glue_submission(tmp_path, GLUE["RTE"], "test", logits, np.array([2, 3, 4]))
    with pytest.raises(UserError, match="RTE test: line 3 of the test file has no prediction"):
        write_glue_submission(tmp_path, GLUE["RTE"], "test", logits, np.array([2, 4, 5]))
    with pytest.raises(UserError, match="RTE dev: the GLUE leaderboard has no such file"):
        write_glue_submission(tmp_path, GLUE["RTE"], "dev", logits)


def test_values_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(UserError, match="1 of 2 predicted values are NaN"):
        write_glue_submission(tmp_path, GLUE["RTE"], "test", np.array([[np.nan, 0.0]]))
    assert list(tmp_path.iterdir()) == []
