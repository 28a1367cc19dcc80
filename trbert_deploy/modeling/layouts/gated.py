"""Rows behind gates: tokens are attended to as far as their gates are open."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.nn.functional import pad

from trbert_deploy.modeling.layouts.layout import RowsLayout, ScoreBias
from trbert_deploy.modeling.memo import T


class GatedLayout:
    """Rows whose tokens are attended to as far as their gates are open.

    Every softmax weight is multiplied by its token's gate and the weights are normalized again,
    so gates of 0 and 1 give what removing the closed tokens gives, and a closed gate still has a
    gradient. The weighted mean is the ratio of two attentions, over ``gate * value`` and over
    ``gate``: one call of the layout underneath, with wider heads, computes both.

    Args:
        layout: where the tokens lie.
        gate: [...] float32 from 0 to 1; at least one of each row must be open.
    """

    EXTRA = 8  # columns added to a head: one for the gate, padded to what kernels like

    def __init__(self, layout: RowsLayout, gate: Tensor) -> None:
        self.layout = layout
        self.gate = gate

    def positions_of(self, tokens: Tensor) -> Tensor:
        return self.layout.positions_of(tokens)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        return self.layout.once(key, compute)

    def first(self, hidden: Tensor) -> Tensor:
        return self.layout.first(hidden)

    def mean(self, hidden: Tensor) -> Tensor:
        weighted = self.layout.row_sums((hidden.float() * self.gate[:, None]).T).T  # [B, H]
        return weighted / self.layout.row_sums(self.gate)[:, None]

    def max(self, hidden: Tensor) -> Tensor:
        closed = (self.gate < 0.5)[:, None]
        return self.layout.max(hidden.float().masked_fill(closed, -torch.inf))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_heads: int,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        width = query.shape[-1] // num_heads
        wide = width + self.EXTRA

        def widen(states: Tensor) -> Tensor:  # [..., H] -> [..., N, wide]
            return pad(states.unflatten(-1, (num_heads, width)), (0, self.EXTRA))

        # The layout underneath divides scores by the root of the wider head.
        query = widen(query) * (wide / width) ** 0.5
        ones = pad(value.new_ones(*value.shape[:-1], num_heads, 1), (width, self.EXTRA - 1))
        value = (widen(value) + ones) * self.gate[..., None, None]
        states = self.layout.attend(
            query.flatten(-2), widen(key).flatten(-2), value.flatten(-2), num_heads, bias
        )
        context = states.unflatten(-1, (num_heads, wide))
        total = context[..., width : width + 1]
        # Where every token in sight of a closed one is closed, too, it sees nothing: 0 / 1.
        return (context[..., :width] / torch.where(total > 0, total, 1.0)).flatten(-2)
