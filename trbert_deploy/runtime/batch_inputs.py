"""Rows of tokens as the tensors that a graph takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trbert_deploy.bundle.manifest import ATTENTION_MASK, HIDDEN
from trbert_deploy.runtime.arrays import HOST, Arrays, stack
from trbert_deploy.runtime.token_state import TokenState


def batch_inputs(
    names: Sequence[str], batch: Sequence[TokenState], arrays: Arrays = HOST
) -> dict[str, np.ndarray]:
    """A batch as a graph takes it; with a mask if rows are padded (see ``Graph``).

    Args:
        names: of the graph's inputs, the mask left out.
        arrays: what the backend's states are kept in.
    """
    inputs = {
        name: (arrays.batch if name == HIDDEN else stack)([row.column(name) for row in batch])
        for name in names
    }
    if len(batch) == 1:
        return inputs
    lengths = np.array([[len(row)] for row in batch])
    if lengths.min() < lengths.max():
        inputs[ATTENTION_MASK] = np.arange(lengths.max()) < lengths
    return inputs
