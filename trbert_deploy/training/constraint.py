"""Holds a run to the computation that was asked for: the length penalty, adjusted as it goes.

The share F of the dense model's FLOPs that the chain takes shall not exceed a goal. The penalty
is the multiplier of that constraint (augmented Lagrangian; Nocedal & Wright 2006, section 17.3):
the loss has the term w * F with

    w = max(0, multiplier + STIFFNESS * (F - goal))

and the multiplier moves by RATE * (F - goal) with every step. The goal falls from what
the stage begins with to the wanted share, so that the encoder can follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trbert_deploy.flops import dense_flops, reduced_flops
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.training.processes import Share


class FlopsConstraint(nn.Module):
    """The penalty of one stage.

    Args:
        speedup: wanted FLOPs of the dense model over the chain's.
        ramp: share of the stage over which the goal falls.
        opening: the speed-up that it falls from; 1 keeps everything.

    Attributes:
        multiplier: [] float32.
        least: [] float32, the share of FLOPs at which the goal stops falling.
    """

    multiplier: Tensor
    least: Tensor
    RATE = 0.1
    STIFFNESS = 10.0

    def __init__(self, speedup: float, ramp: float, opening: float = 1.0) -> None:
        super().__init__()
        self.first = 1.0 / opening
        self.final = 1.0 / speedup
        self.ramp = ramp
        self.register_buffer("multiplier", torch.zeros(()))
        self.register_buffer("least", torch.tensor(self.final))

    def goal(self, done: float) -> float:
        """The share of FLOPs to reach when a share ``done`` of the stage is over."""
        fallen = min(1.0, done / self.ramp) if self.ramp else 1.0
        return max(float(self.least), self.first - fallen * (self.first - self.final))

    def stop_falling(self, share: float) -> None:
        """Let the goal fall no lower than ``share``."""
        self.least.fill_(max(share, float(self.least)))

    def penalty(self, share: float, done: float) -> float:
        """The penalty for a step that took ``share`` of the dense FLOPs; moves the multiplier."""
        excess = share - self.goal(done)
        penalty = max(0.0, float(self.multiplier) + self.STIFFNESS * excess)
        self.multiplier.add_(self.RATE * excess).clamp_(min=0.0)
        return penalty


def flops_share(model: ReducedModel, lengths: Sequence[Tensor], share: Share) -> Tensor:
    """FLOPs of the chain over those of the dense model, summed over the whole batch: scalar.

    Args:
        lengths: tokens of each of the process's rows in every segment, [B] floating each.
        share: what these rows are of the batch.
    """
    reduced = reduced_flops(model.spec, model.reduction, lengths)
    dense = dense_flops(model.spec, lengths[0])
    sums: Tensor = share.total(torch.stack([reduced.sum(), dense.sum()]))
    return sums[0] / sums[1]
