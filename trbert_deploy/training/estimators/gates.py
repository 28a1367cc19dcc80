"""Straight-through gates: token dropping that a gradient can see.

Each token at a cut gets a gate, 1 where the policy keeps it and 0 where it does not, whose
gradient is that of the keep probability (straight-through estimator, Bengio et al. 2013).
Closed tokens stay in the tensor, but nobody attends to them (see GatedLayout): the answer is
that of the chain, and still a token's gate learns what the answer would have gained from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.layouts.gated import GatedLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import Dropped, first_segment
from trbert_deploy.training.batches import PackedBatch
from trbert_deploy.training.constraint import flops_share
from trbert_deploy.training.processes import Share

HOPELESS = 0.02


@dataclass(frozen=True)
class GatedPass:
    """A batch behind gates.

    Attributes:
        outputs: of the head.
        lengths: tokens of each row in every segment, [B] float32 each, differentiable.
        share: what these rows are of the batch.
    """

    outputs: Outputs
    lengths: list[Tensor]
    share: Share

    def flops_share(self, model: ReducedModel) -> Tensor:
        """FLOPs of the chain over those of the dense model, of the whole batch: scalar."""
        return flops_share(model, self.lengths, self.share)


def run_gated(model: ReducedModel, batch: PackedBatch) -> GatedPass:
    """Run a batch with gates at the cuts, which open at a keep probability of 0.5.

    Tokens whose keep probability is under ``HOPELESS`` are removed: their gates have hardly any
    gradient left, and without them the pass costs little more than the chain.
    """
    tokens = first_segment(model, batch)
    gate = torch.ones(len(tokens.hidden), device=tokens.hidden.device)
    lengths = [tokens.layout.row_sums(gate)]
    gated: GatedLayout | None = None
    dropped: list[Dropped] = []
    for segment in model.segments[:-1]:
        logit = model.keep_logit(segment.index, tokens.hidden)
        before, gate = gate, gate * straight_through(logit)
        gate = torch.where(tokens.protected, 1.0, gate)
        if model.hears_dropped:
            dropped.append(Dropped(segment.index, tokens, before - gate))
        lengths.append(tokens.layout.row_sums(gate))
        stays = (logit > math.log(HOPELESS / (1.0 - HOPELESS))) | tokens.protected
        tokens, gate = tokens.compact(stays[None]), gate[stays]
        following = model.segments[segment.index + 1]
        gated = GatedLayout(tokens.layout, gate)
        tokens = tokens.run(model, following.start, following.stop, gated)
    outputs = tokens.answer(model, gated, dropped, gate)
    return GatedPass(outputs, lengths, batch.share)


def straight_through(logit: Tensor) -> Tensor:
    """1 where the logit is at least 0, else 0, with the gradient of its sigmoid."""
    soft = logit.sigmoid()
    return (logit >= 0).float() + (soft - soft.detach())  # exactly 0 or 1
