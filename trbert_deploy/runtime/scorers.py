"""What gives tokens their keep logits at a cut: the policy, or something to compare it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.bundle.manifest import KEEP_LOGIT
from trbert_deploy.runtime.backends.backend import Tensors
from trbert_deploy.runtime.token_state import TokenRow, TokenState

#: For each cut which of the tokens that reach it survive: [S] bool each.
Survival = Sequence[NDArray[np.bool_]]


class Scorer(Protocol):
    """Scores the tokens of a batch at a cut."""

    def keep_logits(
        self, cut: int, batch: Sequence[TokenState], outputs: Tensors
    ) -> NDArray[np.float32]:
        """Keep logits [B, S]; what stands behind a row's length is ignored.

        Args:
            cut: index of the cut.
            batch: the rows, as they reached the segment that ends in the cut.
            outputs: of that segment's graph.
        """
        ...


class PolicyScorer:
    """The trained policy, which stands in the graph."""

    def keep_logits(
        self, cut: int, batch: Sequence[TokenState], outputs: Tensors
    ) -> NDArray[np.float32]:
        return outputs[KEEP_LOGIT]


class ReplayedScorer:
    """Choices that were made beforehand, so that no time is charged for them.

    Args:
        decided: row -> what survives of it, as ``key_of`` names rows.
    """

    def __init__(self, decided: Mapping[bytes, Survival]) -> None:
        self._decided = decided

    @classmethod
    def of(cls, rows: Sequence[TokenRow], survivals: Sequence[Survival]) -> ReplayedScorer:
        """Replays what survives of each of ``rows``."""
        return cls({key_of(row): kept for row, kept in zip(rows, survivals, strict=True)})

    def keep_logits(
        self, cut: int, batch: Sequence[TokenState], outputs: Tensors
    ) -> NDArray[np.float32]:
        logits = np.full((len(batch), max(map(len, batch))), -1.0, np.float32)
        for scores, row in zip(logits, batch, strict=True):
            scores[: len(row)][self._decided[key_of(row.tokens)][cut]] = 1.0
        return logits


def key_of(row: TokenRow) -> bytes:
    """What tells a row from others."""
    return row.input_ids.tobytes() + row.token_type_ids.tobytes()
