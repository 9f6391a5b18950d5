import numpy as np

from tinybert_dist.data.encoding import Example
from tinybert_dist.data.glue import glue_task
from tinybert_dist.data.predictions import write_predictions
from tinybert_dist.training.samples import worst_predictions


def written(path, spec, examples, logits):
    write_predictions(path, spec, range(1, len(examples) + 1), examples, np.asarray(logits))
    return path


def test_sure_mistakes_first_then_what_is_least_sure(tmp_path):
    spec = glue_task("SST-2")
    examples = [Example(name, None, label) for name, label in zip("abcde", (0, 0, 1, 1, None), strict=True)]
    logits = [[3, 0], [0, 1], [2, 0], [0, 0.5], [0, 4]]  # right, wrong, wrong and surer, right, no label
    path = written(tmp_path / "predictions.tsv", spec, examples, logits)
    columns, rows = worst_predictions(path, 10)
    assert columns == ["text", "label", "prediction", "probability"]
    assert [row[0] for row in rows] == ["c", "b", "d", "a", "e"]
    assert rows[0][1:3] == ["1", "0"] and rows[0][3] == np.float64(f"{1 / (1 + np.exp(-2)):.6f}")
    assert rows[-1][1] == ""
    assert worst_predictions(path, 2)[1] == rows[:2]


def test_pairs_have_both_texts_and_regression_the_error(tmp_path):
    spec = glue_task("STS-B")
    examples = [Example('a "quote', "b", 1.0), Example("c", "d", 4.0)]
    path = written(tmp_path / "predictions.tsv", spec, examples, [1.25, 1.5])
    columns, rows = worst_predictions(path, 10)
    assert columns == ["text", "text_pair", "label", "prediction", "error"]
    assert rows == [["c", "d", "4", "1.5", 2.5], ['a "quote', "b", "1", "1.25", 0.25]]
