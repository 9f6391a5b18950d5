import logging

import numpy as np
import pytest

from tinybert_dist.config import UserError
from tinybert_dist.data.glue import GLUE
from tinybert_dist.data.metrics import METRICS, compute


def test_binary_scores_by_hand():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives
    labels = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
    predictions = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    scores = compute(("accuracy", "f1", "mcc"), predictions, labels)
    assert scores == pytest.approx(
        {"accuracy": 0.7, "f1": 6 / 9, "mcc": (3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6)}
    )


def test_more_than_two_classes_give_macro_f1():
    labels, predictions = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    scores = compute(("f1",), predictions, labels)
    assert scores == pytest.approx({"f1_macro": (0.5 + 0.8 + 2 / 3) / 3})


def test_regression_scores_by_hand():
    labels, predictions = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 4.0, 3.0])
    scores = compute(GLUE["STS-B"].metrics, predictions, labels)
    assert scores == pytest.approx({"pearson": 0.8, "spearman": 0.8, "pearson_spearman": 0.8, "mse": 0.5})
    stretched = compute(("pearson", "spearman", "pearson_spearman"), np.array([1.0, 2.0, 3.0, 40.0]), labels)
    assert stretched["spearman"] == pytest.approx(1.0) and stretched["pearson"] < 0.9
    assert stretched["pearson_spearman"] == pytest.approx((stretched["pearson"] + 1) / 2)


@pytest.mark.parametrize("name", ["pearson", "spearman", "pearson_spearman", "mcc"])
@pytest.mark.parametrize("constant", ["predictions", "labels"])
def test_constants_score_zero_with_a_warning(name, constant, caplog):
    varying, same = np.array([0.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0])
    pair = (same, varying) if constant == "predictions" else (varying, same)
    with caplog.at_level(logging.WARNING):
        assert compute((name,), *pair) == {name: 0.0}
    assert (f"all {constant} are 1" if name != "mcc" else "of one class") in caplog.text


def test_scores_are_never_nan(caplog):
    zeros, one = np.zeros(3), np.array([1.0])
    assert compute(("f1",), zeros, zeros) == {"f1": 0.0} and "undefined" in caplog.text
    assert all(np.isfinite(v) for v in compute(METRICS, one, one).values())
    hardly = np.array([1e-200, 2e-200, 3e-200])
    assert np.isfinite(compute(("pearson_spearman",), hardly, np.array([1.0, 2.0, 3.0]))["pearson_spearman"])


@pytest.mark.parametrize(
    ("names", "predictions", "labels", "message"),
    [
        (("accuracy",), [], [], "no labelled example"),
        (("acuracy",), [1], [1], "unknown metric 'acuracy'"),
        (("mse",), [np.nan, 1.0], [1.0, 1.0], "1 of 2 predictions are NaN"),
        (("mse",), [1.0, 1.0], [np.nan, np.inf], "2 of 2 labels are NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused(names, predictions, labels, message):
    with pytest.raises(UserError, match=message):
        compute(names, np.array(predictions), np.array(labels))


def test_selection_of_the_nine_tasks():
    chosen = {name: spec.selection_metric for name, spec in GLUE.items()}
    assert chosen == {name: "accuracy" for name in GLUE} | {"CoLA": "mcc", "STS-B": "pearson_spearman"}
    for spec in GLUE.values():
        assert spec.selection_metric in spec.metrics and set(spec.metrics) <= set(METRICS)
        assert spec.selection_metric != "mse"  # the loop keeps the highest score
    assert "f1" in GLUE["MRPC"].metrics and "f1" in GLUE["QQP"].metrics
