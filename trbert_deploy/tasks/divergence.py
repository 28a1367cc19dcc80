"""How far apart two answers are that are probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.tasks.activations import log_softmax


def kl_divergence(
    teacher: NDArray[Any], student: NDArray[Any], axis: int = -1
) -> NDArray[np.float64]:
    """Kullback-Leibler divergence from a teacher's probabilities, in nats; of logits.

    Returns:
        The shape of the logits without ``axis``.
    """
    wanted, found = log_softmax(teacher, axis), log_softmax(student, axis)
    return np.maximum(0.0, (np.exp(wanted) * (wanted - found)).sum(axis))
