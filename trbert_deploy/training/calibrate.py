"""Moves the operating point of a trained model: the threshold at which it saves what was asked.

What a policy learns is above all an order of the tokens; where its probabilities lie depends on
the training's length and penalty. So the threshold is set on held-out data, for a wanted number
of operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trbert_deploy.flops import speedup
from trbert_deploy.modeling.model import ReducedClassifier
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.training.batches import load_batches, plan_batches
from trbert_deploy.training.data import LabelledRow
from trbert_deploy.training.evaluate import row_lengths
from trbert_deploy.training.loop import autocast, evaluating
from trbert_deploy.training.reduced import choose_by_rule, first_segment, later_segments

STEPS = 10


def calibrate_threshold(
    model: ReducedClassifier,
    rows: Sequence[LabelledRow],
    target_speedup: float,
    batch_tokens: int,
    device: torch.device,
    progress: Progress = no_progress,
) -> float:
    """Set one threshold for all cuts: the lowest found at which ``rows`` take the wanted FLOPs.

    Bisection over the keep probability; saving grows with the threshold.

    Args:
        rows: held-out rows.
        target_speedup: FLOPs of the dense model over the chain's, summed over ``rows``.

    Returns:
        The threshold; the model's rules have it already.
    """
    plan = plan_batches([len(row) for row in rows], batch_tokens)
    low, high = 0.0, 1.0  # keeps everything; keeps protected tokens alone
    with evaluating(model), autocast(device):
        # The first segment's output depends on no threshold.
        starts = [
            (batch, first_segment(model, batch)) for batch in load_batches(rows, plan, device)
        ]
        for step in range(STEPS):
            middle = (low + high) / 2
            model.set_reduction(model.reduction.at_threshold(middle))
            lengths: list[list[int]] = []
            for batch, start in starts:
                _, kept = later_segments(model, start, choose_by_rule(model))
                lengths += row_lengths(batch, kept)
            if speedup(model.spec, model.reduction, lengths) < target_speedup:
                low = middle
            else:
                high = middle
            progress("calibration", step + 1, STEPS)
    model.set_reduction(model.reduction.at_threshold(high))
    return high
