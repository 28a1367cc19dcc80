"""Rows of tokens as the tensors that a graph takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trbert_deploy.bundle.manifest import ATTENTION_MASK
from trbert_deploy.runtime.token_state import TokenState


def batch_inputs(names: Sequence[str], batch: Sequence[TokenState]) -> dict[str, np.ndarray]:
    """A batch as a graph takes it; with a mask if rows are padded (see ``Graph``).

    Args:
        names: of the graph's inputs, the mask left out.
    """
    inputs = {name: stack([row.column(name) for row in batch]) for name in names}
    if len(batch) == 1:
        return inputs
    lengths = np.array([[len(row)] for row in batch])
    if lengths.min() < lengths.max():
        inputs[ATTENTION_MASK] = np.arange(lengths.max()) < lengths
    return inputs


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
