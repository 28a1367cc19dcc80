"""Self-attention: the first half of a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.layouts.layout import Layout, ScoreBias


class Attention(nn.Module):
    """Self-attention with its residual and normalization.

    A family with positions in its attention derives from it: ``rotated`` changes queries and keys,
    ``score_bias`` adds to their products.

    Args:
        linear_bias: whether the linear layers add a bias.
        norm_first: normalize what comes in (pre-norm) instead of the sum (post-norm).
        norm: normalizes; a LayerNorm by default.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        linear_bias: bool = True,
        norm_first: bool = False,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        width = spec.hidden_size
        self.num_heads = spec.num_heads
        self.norm_first = norm_first
        self.query = nn.Linear(width, width, bias=linear_bias)
        self.key = nn.Linear(width, width, bias=linear_bias)
        self.value = nn.Linear(width, width, bias=linear_bias)
        self.output = nn.Linear(width, width, bias=linear_bias)
        self.norm = norm or nn.LayerNorm(width, eps=spec.layer_norm_eps)
        self.dropout = nn.Dropout(spec.dropout)
        self.merged: nn.Linear | None = None

    @torch.no_grad()
    def merge(self) -> None:
        """Make queries, keys and values by one product from now on, where plain layers make them.

        For inference: few rows do not fill a GPU with a third of it.
        """
        parts = (self.query, self.key, self.value)
        if any(type(part) is not nn.Linear for part in parts):
            return
        weight = torch.cat([part.weight for part in parts])
        self.merged = nn.Linear(weight.shape[1], len(weight), self.query.bias is not None)
        self.merged.to(weight.device, weight.dtype)
        self.merged.weight.copy_(weight)
        if self.merged.bias is not None:
            self.merged.bias.copy_(torch.cat([part.bias for part in parts]))

    def rotated(self, states: Tensor, layout: Layout) -> Tensor:
        """Queries or keys [..., H] with their positions worked in; the same by default."""
        return states

    def score_bias(
        self, query: Tensor, key: Tensor, relative: nn.Module | None
    ) -> ScoreBias | None:
        """What is added to the scaled products of queries and keys [..., H] each.

        Args:
            relative: the encoder's module that all layers share, if it has one.
        """
        return None

    def forward(self, hidden: Tensor, layout: Layout, relative: nn.Module | None = None) -> Tensor:
        """hidden [..., H] -> hidden [..., H]."""
        states = self.norm(hidden) if self.norm_first else hidden
        if self.merged is None:
            query, key, value = self.query(states), self.key(states), self.value(states)
        else:
            query, key, value = self.merged(states).chunk(3, -1)
        bias = self.score_bias(query, key, relative)
        context = layout.attend(
            self.rotated(query, layout),
            self.rotated(key, layout),
            value,
            self.num_heads,
            bias,
        )
        change = self.dropout(self.output(context))
        return hidden + change if self.norm_first else self.norm(hidden + change)
