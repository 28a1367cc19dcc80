"""Measures of quality: pure functions of labels and logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CALIBRATION_BINS = 10


def macro_f1(truth: NDArray[np.int64], answers: NDArray[np.int64]) -> float:
    """F1 averaged over the labels that occur in ``truth`` or ``answers``, [N] each."""
    scores = []
    for label in np.union1d(truth, answers):
        hits = int(((truth == label) & (answers == label)).sum())
        scores.append(2 * hits / int((truth == label).sum() + (answers == label).sum()))
    return float(np.mean(scores))


def calibration_error(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """Expected calibration error of the most probable label; logits [N, C], truth [N]."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    confidence = (shifted / shifted.sum(1, keepdims=True)).max(1)
    right = logits.argmax(1) == truth
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, confidence - right, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(truth))


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` [N], by resampling them.

    Few different values occur, so that it is enough to draw how often each one does.
    """
    different, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=RESAMPLES)
    low, high = np.percentile(draws @ different / len(values), [2.5, 97.5])
    return float(low), float(high)
