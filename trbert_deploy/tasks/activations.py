"""What makes scores of logits, by the names that PyTorch has for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGMOID, SOFTMAX, IDENTITY = "Sigmoid", "Softmax", "Identity"


def sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities [...] of logits [...], each for itself."""
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))


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


def identity(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logits as they are."""
    return logits.astype(np.float64)


#: Name -> logits [..., C] to scores [..., C].
ACTIVATIONS: dict[str, Callable[[NDArray[Any]], NDArray[np.float64]]] = {
    SIGMOID: sigmoid,
    SOFTMAX: softmax,
    IDENTITY: identity,
}
