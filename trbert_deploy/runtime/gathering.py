"""Outputs of all tokens of a row, of which some left the encoder at a cut and some at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.tasks.outputs import Output

Values = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Said:
    """What tokens of a row said when they left.

    Attributes:
        positions: [K] int64, where they stood in the row.
        values: by output: of each of them [K, X], or their mean or largest [X].
    """

    positions: NDArray[np.int64]
    values: Values


def only_means(outputs: Sequence[Output]) -> bool:
    """Whether the tokens that leave need not be asked one by one.

    What a dropped token says is a linear map of its state where means are asked for: then that of
    the mean is the mean.
    """
    return all(output.per == "mean" for output in outputs)


def said(outputs: Sequence[Output], positions: NDArray[np.int64], values: Values) -> Said:
    """What came of the states that were asked.

    Args:
        positions: of the tokens.
        values: [K or 1, X] by output.
    """
    reduced = {output.name: _REDUCE[output.per](values[output.name]) for output in outputs}
    return Said(positions, reduced)


def gathered(outputs: Sequence[Output], parts: Sequence[Said]) -> dict[str, NDArray[np.float32]]:
    """A row's outputs, from what all of its tokens said."""
    counts = [len(part.positions) for part in parts]
    found = {}
    for output in outputs:
        values = [part.values[output.name] for part in parts]
        if output.per == "token":
            order = np.concatenate([part.positions for part in parts]).argsort()
            found[output.name] = np.concatenate(values)[order]
        elif output.per == "mean":
            weights = np.array(counts, np.float32) / sum(counts)
            found[output.name] = (np.stack(values) * weights[:, None]).sum(axis=0)
        else:
            found[output.name] = np.stack(values).max(axis=0)
    return found


_REDUCE = {
    "token": lambda values: values,
    "mean": lambda values: values.mean(axis=0),
    "max": lambda values: values.max(axis=0),
}
