"""Rows of one tensor, padded at the end: export and reference."""

from __future__ import annotations

import torch
from torch import Tensor

from trbert_deploy.modeling.layouts.layout import RowGroup, ScoreBias, attend_within
from trbert_deploy.modeling.memo import Memo


def _or_itself(seen: Tensor) -> Tensor:
    """seen [B, 1, S, S] bool, and every token sees itself.

    A padded token may be far from every real one: it would be no number, and spoil others' sums
    though they give it no weight.
    """
    place = torch.arange(seen.shape[-1], device=seen.device)
    return seen | (place[:, None] == place)


class PaddedLayout(Memo):
    """Rows of one tensor [B, S, H], those shorter than S padded at the end.

    Args:
        mask: [B, S] bool, True where a token is; None when no row is padded.
        positions: [B, S] int64, where the tokens stood in their rows; None for whole rows.
    """

    def __init__(self, mask: Tensor | None, positions: Tensor | None = None) -> None:
        super().__init__()
        self.mask = mask
        self.positions = positions
        self._group: RowGroup | None = None

    def positions_of(self, tokens: Tensor) -> Tensor:
        if self.positions is None:
            self.positions = torch.arange(tokens.shape[1], device=tokens.device)[None, :]
        return self.positions

    def first(self, hidden: Tensor) -> Tensor:
        return hidden[:, 0]

    def mean(self, hidden: Tensor) -> Tensor:
        if self.mask is None:
            return hidden.mean(1)
        real = self.mask[..., None]
        return torch.where(real, hidden, 0.0).sum(1) / real.sum(1)

    def max(self, hidden: Tensor) -> Tensor:
        if self.mask is None:
            return hidden.amax(1)
        return torch.where(self.mask[..., None], hidden, -torch.inf).amax(1)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_heads: int,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        return attend_within(query, key, value, num_heads, self.scores_mask(query, bias))

    def scores_mask(self, query: Tensor, bias: ScoreBias | None) -> Tensor | None:
        """Mask and bias as attention takes them: [B or 1, N or 1, S, S], bool or float, or None."""
        visible = None
        if self.mask is not None:
            # Spelled out to [B, 1, S, S]: runtimes do not agree on a broadcast mask.
            batch, length = self.mask.shape
            visible = self.mask[:, None, None, :].expand(batch, 1, length, length)
        if bias is None:
            return visible
        if self._group is None:
            self._group = RowGroup(self.positions_of(query))
        added = bias.compute(self._group, *bias.per_token)
        if visible is None:
            return added
        if added.dtype == torch.bool:
            return self.once(added, lambda: _or_itself(added & visible))
        return torch.where(visible, added, -torch.inf)
