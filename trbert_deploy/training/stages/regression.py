"""Fits the linear map from the states at a cut to last states, by ridge regression.

What a token says that is dropped (``ReducedModel.projections``) is learned like everything else;
this is where it begins. Sums over all tokens are all that the solution needs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trbert_deploy.training import processes

#: Penalty of the weights, as a share of the mean square of a state's values.
RIDGE = 1e-3


class Regression:
    """Sums of products over tokens.

    Args:
        width: H.
        device: where states live.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._inner = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=device)
        self._outer = torch.zeros(width + 1, width, dtype=torch.float64, device=device)

    def add(self, states: Tensor, wanted: Tensor) -> None:
        """Note tokens: states [T, H] and what they should become [T, H]."""
        known = torch.cat([states.float(), states.new_ones(len(states), 1).float()], 1)
        self._inner += (known.T @ known).double()
        self._outer += (known.T @ wanted.float()).double()

    def solved(self) -> NDArray[np.float32]:
        """Weights and bias: [H, H + 1] float32, the same in all processes."""
        inner, outer = (processes.total(sums.cpu()) for sums in (self._inner, self._outer))
        ridge = RIDGE * inner.diagonal()[:-1].mean()
        penalty = torch.cat([ridge.expand(len(inner) - 1), ridge.new_zeros(1)])
        solution = torch.linalg.lstsq(inner + penalty.diag(), outer).solution
        return np.ascontiguousarray(solution.T.float().numpy())
