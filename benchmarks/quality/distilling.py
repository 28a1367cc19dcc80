"""One pass over texts in which a changed model learns answers: what experiments have in common."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.training.batches import PackedBatch, plan_batches
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.loop import StageSettings, train_stage
from trbert_deploy.training.stages.stage import Stage, Step

BATCH_TOKENS = 4096
WARMUP_SHARE = 0.1


def distill_once(
    model: ReducedModel,
    parameters: Iterable[nn.Parameter],
    losses_of: Callable[[PackedBatch], Tensor],
    rows: Sequence[TrainingRow],
    *,
    learning_rate: float,
    device: torch.device,
    seed: int = 0,
) -> None:
    """Train once over the rows, in place; what is there at the end is kept, nothing is judged.

    Args:
        parameters: of the model, those that learn.
        losses_of: batch -> what each of its rows is off by, [B].
        seed: of the rows' order.
    """

    def compute(batch: PackedBatch, _: float) -> Step:
        return Step(batch.share.mean(losses_of(batch)), {})

    plan = plan_batches([len(row) for row in rows], BATCH_TOKENS, seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        settings = StageSettings(
            "hard", Path(scratch), plan, WARMUP_SHARE, seed, float("inf"), 1, device
        )
        stage = Stage(compute, [{"params": [*parameters], "lr": learning_rate}])
        train_stage(settings, model, stage, rows, lambda _: 0.0, lambda *_: None)
