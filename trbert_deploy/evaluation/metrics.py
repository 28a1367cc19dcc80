"""What figures of quality are worth: intervals of their means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000

#: Statistics [M, K] of rows -> their measure, see ``Task.measured``.
Measured = Callable[[NDArray[np.float64]], float]


@dataclass(frozen=True)
class Change:
    """How far a measure differs between two models on the same rows.

    Attributes:
        value: the second model's minus the first's.
        interval: 95 % interval of that, by paired bootstrap over the rows.
        error: standard error of that: deviation of the bootstrap.
    """

    value: float
    interval: tuple[float, float]
    error: float


def paired_change(
    measured: Measured, one: NDArray[np.float64], other: NDArray[np.float64]
) -> Change:
    """The change of a measure from one model to another.

    Args:
        one, other: statistics of the same rows, or groups of rows: [N, K] each.
    """
    rows, width = one.shape
    different, counts = np.unique(np.hstack([one, other]), axis=0, return_counts=True)
    draws = np.random.default_rng(0).multinomial(rows, counts / rows, size=RESAMPLES)
    changes = np.empty(RESAMPLES)
    for number, draw in enumerate(draws):
        drawn = different.repeat(draw, axis=0)
        changes[number] = measured(drawn[:, width:]) - measured(drawn[:, :width])
    low, high = np.percentile(changes, [2.5, 97.5])
    return Change(
        measured(other) - measured(one),
        (float(low), float(high)),
        float(changes.std()),
    )


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` [N], by resampling them.

    Few different values occur, so that it is enough to draw how often each one does.
    """
    different, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=RESAMPLES)
    low, high = np.percentile(draws @ different / len(values), [2.5, 97.5])
    return float(low), float(high)
