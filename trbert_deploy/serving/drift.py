"""Whether what a service is asked still looks like what its thresholds were set on."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from trbert_deploy.runtime.token_state import RowResult, TokenRow

#: Rows that the recent mean looks back on; so many must have come before it tells anything.
RECENT = 500


def kept_share(row: TokenRow, result: RowResult) -> float:
    """The share of a row's tokens that survives all cuts."""
    return len(result.kept[-1]) / len(row) if result.kept else 1.0


class Drift:
    """How far the mean share of survivors has moved, in standard deviations of one text's.

    On texts like those that a model was calibrated on it stays near 0. Texts of another kind keep
    more of their tokens, which costs time, or fewer, which may cost quality.

    Args:
        shares: survivors' shares of the texts that were held out when the model was trained.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self._mean = float(np.mean(shares))
        self._spread = max(float(np.std(shares)), 1e-3)
        self._recent = self._mean
        self._seen = 0
        self._lock = threading.Lock()

    def see(self, shares: Sequence[float]) -> None:
        """Take in rows that ran at the model's own operating point."""
        with self._lock:
            for share in shares:
                self._recent += (share - self._recent) / RECENT
            self._seen += len(shares)

    @property
    def value(self) -> float:
        """The recent mean less the calibrated one; 0 until enough rows came."""
        if self._seen < RECENT:
            return 0.0
        return (self._recent - self._mean) / self._spread
