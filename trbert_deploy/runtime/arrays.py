"""Hidden states where a backend computes them, and the few things that the chain does to them.

The chain chooses tokens on the host, by their keep logits. States stay in the backend's own
memory: from cut to cut the chain passes on what stands where, and never looks inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

#: States of a batch [B, S, H] or of a row [K, H]: values of the backend, numpy on the host.
States = Any


class Arrays(Protocol):
    """What a backend's states are kept in."""

    def rows(self, hidden: States, places: Sequence[NDArray[np.int64]]) -> list[States]:
        """States of some tokens of each row of a batch.

        Args:
            hidden: [B, S, H], as a graph returned it.
            places: of the tokens in each row, [K] int64.

        Returns:
            [K, H] for each row.
        """
        ...

    def batch(self, rows: Sequence[States]) -> States:
        """Rows [K, H] as a graph takes them: [B, K, H], of which the shorter ones are padded."""
        ...

    def means(self, rows: Sequence[States]) -> States:
        """The mean of each row [K, H], of at least one token each: [B, 1, H]."""
        ...

    def to_host(self, hidden: States) -> NDArray[np.float32]:
        """States of a batch as numpy has them, for who wants to look inside."""
        ...


class HostArrays:
    """States in numpy's arrays, float32."""

    def rows(
        self, hidden: NDArray[np.float32], places: Sequence[NDArray[np.int64]]
    ) -> list[NDArray[np.float32]]:
        return [row.take(each, axis=0) for row, each in zip(hidden, places, strict=True)]

    def batch(self, rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return stack(rows)

    def means(self, rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.stack([row.mean(axis=0, keepdims=True) for row in rows])

    def to_host(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        return hidden


HOST = HostArrays()


def stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays [S, ...] as one [B, S, ...], the shorter ones padded with zeros at the end."""
    if len(arrays) == 1:
        return arrays[0][None]
    longest = max(map(len, arrays))
    if min(map(len, arrays)) == longest:
        return np.stack(arrays)
    stacked = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), arrays[0].dtype)
    for place, array in enumerate(arrays):
        stacked[place, : len(array)] = array
    return stacked
