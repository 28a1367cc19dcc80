"""What figures of quality are worth: intervals of their means."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` [N], by resampling them.

    Few different values occur, so that it is enough to draw how often each one does.
    """
    different, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=RESAMPLES)
    low, high = np.percentile(draws @ different / len(values), [2.5, 97.5])
    return float(low), float(high)
