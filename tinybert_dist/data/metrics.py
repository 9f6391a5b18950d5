"""Scores of predictions against labels. Never NaN: a score that is not defined is 0.0, with a warning."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from tinybert_dist.config import UserError

logger = logging.getLogger(__name__)


def compute(metric_names: Sequence[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of `predictions` (N class indexes, or N values) against `labels` (N), in the order of the names.

    "f1" is that of class 1 when no index is above 1; with more classes the unweighted mean over classes is
    reported as "f1_macro" instead. Correlations with a constant are undefined: 0.0 with a warning. Raises
    UserError for an unknown name, for no examples, and for predictions that are not finite.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    assert predictions.ndim == 1 and predictions.shape == labels.shape, (predictions.shape, labels.shape)
    if len(labels) == 0:
        raise UserError("nothing to score: the split has no labelled example.")
    for what, values in (("predictions", predictions), ("labels", labels)):
        if bad := int((~np.isfinite(values.astype(np.float64))).sum()):
            raise UserError(f"{bad} of {len(values)} {what} are NaN or infinite: nothing can be scored.")
    scores = {}
    for name in metric_names:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}. Known: {', '.join(METRICS)}.")
        if name == "f1" and max(predictions.max(), labels.max()) > 1:
            name = "f1_macro"  # noqa: PLW2901
        scores[name] = float(METRICS[name](labels, predictions))
    return scores


def _correlation(method: Callable, name: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    labels, predictions = labels.astype(np.float64), predictions.astype(np.float64)
    for what, values in (("predictions", predictions), ("labels", labels)):
        # two examples always correlate perfectly; one, or a constant, not at all
        if len(values) < 2 or np.ptp(values) == 0:
            logger.warning("%s is undefined: all %s are %g. Counted as 0.0.", name, what, values[0])
            return 0.0
    value = float(method(predictions, labels).statistic)
    if not np.isfinite(value):
        # differences below the resolution of a float64 square
        logger.warning("%s is undefined: the values hardly vary. Counted as 0.0.", name)
        return 0.0
    return value


def _pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    return _correlation(stats.pearsonr, "pearson", labels, predictions)


def _spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    return _correlation(stats.spearmanr, "spearman", labels, predictions)


def _pearson_spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    return (_pearson(labels, predictions) + _spearman(labels, predictions)) / 2


def _mcc(labels: np.ndarray, predictions: np.ndarray) -> float:
    if len(np.unique(predictions)) == 1 or len(np.unique(labels)) == 1:
        logger.warning("mcc is undefined: predictions or labels are all of one class. Counted as 0.0.")
        return 0.0
    return sk.matthews_corrcoef(labels, predictions)


def _f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    if not (np.any(labels == 1) or np.any(predictions == 1)):
        logger.warning("f1 is undefined: class 1 is neither a label nor a prediction. Counted as 0.0.")
        return 0.0
    return sk.f1_score(labels, predictions, pos_label=1, zero_division=0)


def _f1_macro(labels: np.ndarray, predictions: np.ndarray) -> float:
    return sk.f1_score(labels, predictions, average="macro", zero_division=0)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": sk.accuracy_score,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "mcc": _mcc,
    "pearson": _pearson,
    "spearman": _spearman,
    "pearson_spearman": _pearson_spearman,
    "mse": sk.mean_squared_error,
}
