"""Straight-through gates: token dropping that a gradient can see.

Each token at a cut gets a gate, 1 where the policy keeps it and 0 where it does not, whose
gradient is that of the keep probability (straight-through estimator, Bengio et al. 2013).
Closed tokens stay in the tensor, but nobody attends to them (see GatedLayout): the answer is
that of the chain, and still every token's gate learns what the answer would have gained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trbert_deploy.flops import dense_flops, reduced_flops
from trbert_deploy.modeling.layouts import GatedLayout, Layout
from trbert_deploy.modeling.model import ReducedClassifier
from trbert_deploy.training.batches import PackedBatch
from trbert_deploy.training.reduced import head_logits


@dataclass(frozen=True)
class GatedPass:
    """A batch behind gates.

    Attributes:
        logits: [B, C] float32.
        lengths: tokens of each row in every segment, [B] float32 each, differentiable.
    """

    logits: Tensor
    lengths: list[Tensor]

    def flops_share(self, model: ReducedClassifier) -> Tensor:
        """FLOPs of the chain over those of the dense model, summed over the batch: scalar."""
        spec, tokens = model.spec, self.lengths[0]
        reduced = reduced_flops(spec, model.reduction, self.lengths)
        return torch.as_tensor(reduced).sum() / torch.as_tensor(dense_flops(spec, tokens)).sum()


def run_gated(model: ReducedClassifier, batch: PackedBatch) -> GatedPass:
    """Run a batch with gates at the cuts, half open at a keep probability of 0.5."""
    hidden = model.embed(batch.input_ids, batch.token_type_ids, batch.positions)
    layout: Layout = batch.layout
    gate = torch.ones(len(hidden), device=hidden.device)
    lengths = [batch.layout.row_sums(gate)]
    for segment in model.segments:
        hidden = model.run_segment(segment.index, hidden, layout)
        if segment.cut is None:
            break
        gate = gate * straight_through(model.keep_logit(segment.index, hidden))
        gate = gate.index_fill(0, batch.layout.starts, 1.0)  # the first token always survives
        lengths.append(batch.layout.row_sums(gate))
        layout = GatedLayout(batch.layout, gate)
    return GatedPass(head_logits(model, hidden, batch.layout), lengths)


def straight_through(logit: Tensor) -> Tensor:
    """1 where the logit is at least 0, else 0, with the gradient of its sigmoid."""
    soft = logit.sigmoid()
    return (logit >= 0).float() + (soft - soft.detach())  # exactly 0 or 1
