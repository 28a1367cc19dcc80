"""What makes a last state of the state that a token was dropped with."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projection(nn.Linear):
    """A linear map [..., H] -> [..., H], the identity until it is fitted.

    Linear, so that the mean of some tokens can be mapped in place of each of them.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, hidden_size)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Become the identity."""
        nn.init.eye_(self.weight)
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def fit(self, weight: Tensor, bias: Tensor) -> None:
        """Take a fitted map: weight [H, H], bias [H]."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)
