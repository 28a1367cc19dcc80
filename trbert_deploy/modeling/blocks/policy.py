"""The policy at a cut."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Policy(nn.Module):
    """Scores every token at a cut (TR-BERT, section 3.2): Linear(H, 32), GELU, Linear(32, 1).

    Runs in float32 at every precision: a rounded score would keep other tokens.
    """

    WIDTH = 32

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, self.WIDTH)
        self.score = nn.Linear(self.WIDTH, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., H] -> keep logit [...] float32; its sigmoid is the keep probability."""
        with torch.autocast(hidden.device.type, enabled=False):
            inner = nn.functional.gelu(self.dense(hidden.float()))
            return self.score(inner).squeeze(-1)
