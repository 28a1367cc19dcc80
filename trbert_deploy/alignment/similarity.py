"""How alike the states of two texts are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pooled(hidden: NDArray[np.float32], groups: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
    """The mean state of each group of tokens: [S, H] -> [G, H].

    Args:
        groups: places of tokens, [T] each, at least one.
    """
    means = [hidden[group].mean(axis=0) for group in groups]
    return np.stack(means) if means else np.zeros((0, hidden.shape[1]), np.float32)


def cosine_similarity(
    source: NDArray[np.float32], target: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Cosines between states: [M, H] and [N, H] -> [M, N]; 0 where a state has no direction."""
    return _directions(source) @ _directions(target).T


def _directions(states: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(states, axis=1, keepdims=True)
    return (states / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
