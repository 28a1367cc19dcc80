"""Logits to probabilities, and how far apart two of them are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def log_softmax(logits: NDArray[Any], axis: int = -1) -> NDArray[np.float64]:
    """Logarithms of the probabilities of logits, which sum to 1 along an axis."""
    shifted = logits.astype(np.float64) - logits.max(axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis, keepdims=True)))


def softmax(logits: NDArray[Any], axis: int = -1) -> NDArray[np.float64]:
    """Probabilities of logits, which sum to 1 along an axis."""
    return np.exp(log_softmax(logits, axis))


def kl_divergence(
    teacher: NDArray[Any], student: NDArray[Any], axis: int = -1
) -> NDArray[np.float64]:
    """Kullback-Leibler divergence from a teacher's probabilities, in nats; of logits.

    Returns:
        The shape of the logits without ``axis``.
    """
    wanted, found = log_softmax(teacher, axis), log_softmax(student, axis)
    return np.maximum(0.0, (np.exp(wanted) * (wanted - found)).sum(axis))
