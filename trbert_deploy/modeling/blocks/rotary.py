"""Rotary positions (Su et al. 2021): queries and keys are turned by angles of their positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trbert_deploy.modeling.layouts import Layout


class Rotary(nn.Module):
    """Turns each head's pairs of numbers, the first half of a head with the second.

    Layers of one theta share one of these: a layout then computes the angles once for all.

    Args:
        width: D, even.
        theta: base of the wave lengths.
    """

    frequency: Tensor

    def __init__(self, width: int, theta: float) -> None:
        super().__init__()
        self.width = width
        frequency = 1.0 / theta ** (torch.arange(0, width, 2).float() / width)
        self.register_buffer("frequency", frequency, persistent=False)  # [D / 2]

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [...] int64 -> cosines and sines [..., 1, D] float32, the latter with the sign
        that a pair's other number gets."""
        angle = positions[..., None].float() * self.frequency
        cos, sin = angle.cos(), angle.sin()
        cosines, sines = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return cosines[..., None, :], sines[..., None, :]

    def forward(self, states: Tensor, layout: Layout) -> Tensor:
        """Queries or keys [..., H], turned: in float32, whatever their type."""
        cosines, sines = layout.once(self, lambda: self.tables(layout.positions_of(states)))
        heads = states.float().unflatten(-1, (-1, self.width))
        first, second = heads.chunk(2, -1)
        other = torch.cat((second, first), -1)
        return (heads * cosines + other * sines).flatten(-2).to(states.dtype)
