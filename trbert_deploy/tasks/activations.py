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


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithms [..., C] of the probabilities of logits [..., C]."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities [..., C] of logits [..., C], which sum to 1."""
    return np.exp(log_softmax(logits))


def identity(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logits as they are."""
    return logits.astype(np.float64)


#: Name -> logits [..., C] to scores [..., C].
ACTIVATIONS: dict[str, Callable[[NDArray[Any]], NDArray[np.float64]]] = {
    SIGMOID: sigmoid,
    SOFTMAX: softmax,
    IDENTITY: identity,
}
