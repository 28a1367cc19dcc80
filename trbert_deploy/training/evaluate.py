"""Validation: the quality of the dense model and of the chain, and what the chain saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from trbert_deploy.flops import speedup
from trbert_deploy.modeling.model import ReducedClassifier
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.training.batches import PackedBatch, load_batches, plan_batches
from trbert_deploy.training.data import LabelledRow
from trbert_deploy.training.loop import autocast, evaluating
from trbert_deploy.training.reduced import (
    choose_by_rule,
    dense_logits,
    first_segment,
    later_segments,
)


@dataclass(frozen=True)
class Evaluation:
    """Quality on labelled rows.

    Attributes:
        rows: how many.
        dense_accuracy: share of rows that the dense model labels right.
        accuracy: the same of the chain.
        kept: for each cut the tokens left, as a share of all tokens.
        flops_speedup: FLOPs of the dense model over the chain's.
    """

    rows: int
    dense_accuracy: float
    accuracy: float
    kept: tuple[float, ...]
    flops_speedup: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    model: ReducedClassifier,
    rows: Sequence[LabelledRow],
    batch_tokens: int,
    device: torch.device,
    progress: Progress = no_progress,
) -> Evaluation:
    """Run the dense model and the chain over ``rows``."""
    plan = plan_batches([len(row) for row in rows], batch_tokens)
    right = dense_right = 0
    lengths: list[list[int]] = []
    with evaluating(model), autocast(device):
        for number, batch in enumerate(load_batches(rows, plan, device), start=1):
            dense = dense_logits(model, batch)
            logits, kept = later_segments(model, first_segment(model, batch), choose_by_rule(model))
            right += int((logits.argmax(-1) == batch.labels).sum())
            dense_right += int((dense.argmax(-1) == batch.labels).sum())
            lengths += row_lengths(batch, kept)
            progress("validation", number, len(plan))
    totals = [sum(column) for column in zip(*lengths, strict=True)]
    return Evaluation(
        rows=len(rows),
        dense_accuracy=dense_right / len(rows),
        accuracy=right / len(rows),
        kept=tuple(left / totals[0] for left in totals[1:]),
        flops_speedup=speedup(model.spec, model.reduction, lengths),
    )


def row_lengths(batch: PackedBatch, kept: Sequence[Tensor]) -> list[list[int]]:
    """For each row of a batch its tokens in every segment."""
    columns = [batch.layout.lengths.tolist(), *(left.tolist() for left in kept)]
    return [list(row) for row in zip(*columns, strict=True)]
