"""When a row leaves the chain at a cut, with the answer of the exit that stands there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trbert_deploy.bounds import require_whole
from trbert_deploy.errors import ConfigError

MOST_PATIENCE = 1000


@dataclass(frozen=True)
class ExitRule:
    """When a row leaves: as soon as one of the two says so. Without either no row does.

    Attributes:
        confidence: how sure of its answer an exit must be, more than this (BranchyNet,
            Teerapittayanon et al. 2016, by confidence instead of entropy); 1 is never reached.
        patience: how many exits, one behind the other, must give the same answer (PABEE, Zhou et
            al. 2020).

    Raises:
        ConfigError: out of range.
    """

    confidence: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0.0 <= self.confidence <= 1.0:
            raise ConfigError(
                f"exit_confidence is {self.confidence}: expected a probability from 0 to 1"
            )
        if self.patience is not None:
            require_whole("exit_patience", self.patience, 1, MOST_PATIENCE)

    @property
    def is_active(self) -> bool:
        """Whether a row may leave."""
        sure = self.confidence is not None and self.confidence < 1.0
        return sure or self.patience is not None


def left_shares(lengths: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Share of rows that left at each cut.

    Args:
        lengths: for each row its tokens in every segment [C+1], 0 behind the cut at which it left.
    """
    there = (np.array(lengths) > 0).mean(axis=0)
    return tuple(float(share) for share in there[:-1] - there[1:])
