import logging

import numpy as np
import pytest

from tinybert_dist.config import UserError
from tinybert_dist.data.labels import all_fractional, canonical_label, find_labels, map_labels


def test_order_of_labels():
    assert find_labels({"10": 5, "9": 5, "-1": 5}) == ("-1", "9", "10")
    assert find_labels({"b": 5, "a": 5, "10": 5}) == ("10", "a", "b")


def test_names_of_whole_numbers():
    assert [canonical_label(v) for v in (" 1.0", "1", "-2.00", "1.5", "x 1.0")] == [
        "1",
        "1",
        "-2",
        "1.5",
        "x 1.0",
    ]


@pytest.mark.parametrize(
    ("counts", "labels"),
    [
        ({"0": 500, "1": 500, "x" * 65: 400}, ("0", "1")),
        ({"0": 500, "1": 500, "neutral": 5}, ("0", "1")),
        ({"0": 500, "1": 400, "neutral": 100}, ("0", "1", "neutral")),
        ({"yes": 500, "no": 500, "it rained": 1}, ("no", "yes")),
        ({"yes": 500, "no": 500, "rare": 2}, ("no", "rare", "yes")),
        ({"yes": 6, "no": 5, "rare": 1}, ("no", "rare", "yes")),
        ({"0": 1000, "1": 1}, ("0", "1")),
        ({"a": 90, "b": 90, "c": 1, "d": 1, "e": 1, "f": 1}, ("a", "b", "c", "d", "e", "f")),
    ],
)
def test_stray_values_are_told_from_rare_classes(counts, labels):
    assert find_labels(counts) == labels


def test_num_labels_declares_a_rare_class_or_is_contradicted():
    counts = {"yes": 500, "no": 500, "rare": 1}
    assert find_labels(counts, 3) == ("no", "rare", "yes")
    assert find_labels(counts, 2) == ("no", "yes")
    with pytest.raises(
        UserError, match=r"--num_labels 5, but .* 2 labels: no \(500 rows\), yes \(500 rows\)"
    ):
        find_labels(counts, 5)
    with pytest.raises(UserError, match=r"1 label\(s\): yes \(9 rows\)"):
        find_labels({"yes": 9})
    with pytest.raises(UserError, match=r"0 label\(s\): none"):
        find_labels({})


def test_fractions_are_scores():
    assert all_fractional({"1.5": 1, "2": 3})
    assert not all_fractional({"1": 1, "2": 3})
    assert not all_fractional({"1.5": 1, "nan": 1}) and not all_fractional({"1.5": 1, "x": 1})


def test_logits_are_reordered_by_name_as_between_hub_and_glue_mnli():
    data, hub = ("contradiction", "entailment", "neutral"), ("ENTAILMENT", "Neutral", "contradiction")
    index = map_labels(data, hub)
    logits = np.array([[0.1, 0.2, 0.7]])
    assert logits[:, index].tolist() == [[0.7, 0.1, 0.2]]
    assert map_labels(["a", "A"], ["A", "a"]).tolist() == [1, 0]


def test_a_model_without_names_is_taken_in_order_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert map_labels(["b", "a"], None).tolist() == [0, 1]
        assert map_labels(["b", "a"], ["LABEL_0", "LABEL_1"]).tolist() == [0, 1]
    assert caplog.text.count("does not name its labels") == 2
    assert map_labels(["LABEL_1", "LABEL_0"], ["LABEL_0", "LABEL_1"]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (["positive", "negative"], None),
        (["0", "1", "2"], None),
        (["LABEL_0"], None),
        (None, 3),
        (["0", "0"], None),
    ],
)
def test_labels_that_do_not_match_show_both_lists(model, count):
    shown = "no names, 3 classes" if model is None else str(model).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(UserError, match=rf"The data has \['0', '1'\], the model has {shown}"):
        map_labels(["0", "1"], model, count)
