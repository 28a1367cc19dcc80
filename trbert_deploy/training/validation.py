"""Validation: how good the dense model and the chain are on held-out rows, at what cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from trbert_deploy.flops import REACHED, speedup
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import (
    TokenState,
    choose_by_rule,
    dense_outputs,
    first_segment,
    later_segments,
    row_lengths,
    select_at_cuts,
)
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.training import processes
from trbert_deploy.training.batches import PackedBatch, load_batches, plan_batches
from trbert_deploy.training.contexts import autocast, evaluating
from trbert_deploy.training.data import TrainingRow

#: Calibration looks at so many tokens at most: their first segment's output stays in memory.
CALIBRATION_TOKENS = 100_000
CALIBRATION_STEPS = 14
CALIBRATION_TOLERANCE = 0.005


@dataclass(frozen=True)
class ValidatedPoint:
    """The chain at one threshold.

    Attributes:
        threshold: keep probability from which a token survives.
        accuracy: share of rows that it labels right.
        kept: for each cut the tokens left, as a share of all tokens.
        flops_speedup: FLOPs of the dense model over the chain's.
    """

    threshold: float
    accuracy: float
    kept: tuple[float, ...]
    flops_speedup: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kept": list(self.kept)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ValidatedPoint:
        return cls(**{**data, "kept": tuple(data["kept"])})


@dataclass(frozen=True)
class Evaluation:
    """Quality on labelled rows.

    Attributes:
        rows: how many.
        dense_accuracy: share of rows that the dense model labels right.
        accuracy, kept, flops_speedup: of the chain, as in ``ValidatedPoint``.
    """

    rows: int
    dense_accuracy: float
    accuracy: float
    kept: tuple[float, ...]
    flops_speedup: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        return cls(**{**data, "kept": tuple(data["kept"])})


@dataclass(frozen=True)
class Validator:
    """Held-out rows, and how to run them.

    Several processes divide the batches among themselves; what is returned is of all rows, and
    the same in each.

    Attributes:
        rows: the rows.
        batch_tokens: tokens of one batch.
        device: where the model is.
        progress: told of every batch.
    """

    rows: Sequence[TrainingRow]
    batch_tokens: int
    device: torch.device
    progress: Progress = no_progress

    def evaluate(self, model: ReducedModel) -> Evaluation:
        """The dense model and the chain at its own rules."""
        point = self.chain(model)
        return Evaluation(
            len(self.rows),
            self.dense_accuracy(model),
            point.accuracy,
            point.kept,
            point.flops_speedup,
        )

    def dense_accuracy(self, model: ReducedModel) -> float:
        """Share of rows that the dense model labels right."""
        right: list[float] = []
        with evaluating(model), autocast(self.device):
            for batch in self._batches(self.rows, "validation, dense"):
                right.append(_right(model, dense_outputs(model, batch), batch))
        return sum(processes.gather(right)) / len(self.rows)

    def chain(self, model: ReducedModel) -> ValidatedPoint:
        """The chain at its own rules."""
        right: list[float] = []
        lengths: list[list[int]] = []
        with evaluating(model), autocast(self.device):
            for batch in self._batches(self.rows, "validation"):
                start = first_segment(model, batch)
                outputs, kept = later_segments(model, start, choose_by_rule(model))
                right.append(_right(model, outputs, batch))
                lengths += row_lengths(batch, kept)
        accuracy = sum(processes.gather(right)) / len(self.rows)
        return _point(model, accuracy, processes.gather(lengths))

    def calibrate(self, model: ReducedModel, target_speedup: float) -> float:
        """Set one threshold for all cuts, at which rows take the wanted FLOPs.

        What a policy learns is above all an order of the tokens; where its probabilities lie
        depends on the training's length and penalty. So the threshold is set on held-out data.

        Args:
            target_speedup: FLOPs of the dense model over the chain's, summed over rows.

        Returns:
            The speed-up found (less than wanted where dropping all but protected tokens does not
            reach it); the model's rules have the threshold already.
        """
        with evaluating(model), autocast(self.device):
            return _search(model, self._starts(model), target_speedup, self.progress)

    def operating_points(
        self, model: ReducedModel, speedups: Sequence[float]
    ) -> list[ValidatedPoint]:
        """The chain at the thresholds that save each of ``speedups``, as far as they can be
        reached; the model's rules stay.
        """
        rules = model.reduction
        points = []
        with evaluating(model), autocast(self.device):
            starts = self._starts(model)
            for wanted in speedups:
                reached = _search(model, starts, wanted, self.progress)
                if reached < wanted * REACHED:
                    break
                points.append(self.chain(model))
        model.set_reduction(rules)
        return points

    def _starts(self, model: ReducedModel) -> list[Start]:
        """The first segment's output, which depends on no threshold."""
        return [
            (batch, first_segment(model, batch))
            for batch in self._batches(self._sample(), "calibration")
        ]

    def _sample(self) -> Sequence[TrainingRow]:
        """The first rows, as many as calibration looks at."""
        tokens = 0
        for count, row in enumerate(self.rows):
            tokens += len(row)
            if tokens > CALIBRATION_TOKENS and count:
                return self.rows[:count]
        return self.rows

    def _batches(self, rows: Sequence[TrainingRow], what: str) -> Iterator[PackedBatch]:
        plan = plan_batches([len(row) for row in rows], self.batch_tokens)
        plan = plan[processes.index() :: processes.count()]
        self.progress(what, 0, len(plan))
        for number, batch in enumerate(load_batches(rows, plan, self.device), start=1):
            yield batch
            self.progress(what, number, len(plan))


#: A batch and the first segment's output on it.
Start = tuple[PackedBatch, TokenState]


def _search(
    model: ReducedModel, starts: Sequence[Start], target_speedup: float, progress: Progress
) -> float:
    """Bisection over the keep logit (saving grows with it), see ``Validator.calibrate``."""
    logits = [model.keep_logit(0, start.hidden) for _, start in starts]
    low = min(processes.gather([part.min().item() for part in logits])) - 1.0
    high = max(processes.gather([part.max().item() for part in logits])) + 1.0
    for step in range(CALIBRATION_STEPS):
        progress("threshold", step, CALIBRATION_STEPS)
        middle = (low + high) / 2
        set_threshold(model, 1.0 / (1.0 + math.exp(-middle)))
        reached = _speedup_of(model, starts)
        if abs(reached / target_speedup - 1.0) < CALIBRATION_TOLERANCE:
            break
        low, high = (middle, high) if reached < target_speedup else (low, middle)
    progress("threshold", CALIBRATION_STEPS, CALIBRATION_STEPS)
    return reached


def _speedup_of(model: ReducedModel, starts: Sequence[Start]) -> float:
    """FLOPs speed-up by the model's rules; the last segment need not run for it."""
    lengths: list[list[int]] = []
    for batch, start in starts:
        walk = select_at_cuts(model, start, choose_by_rule(model))
        lengths += row_lengths(batch, [torch.from_numpy(left.layout.lengths) for left in walk])
    return speedup(model.spec, model.reduction, processes.gather(lengths))


def set_threshold(model: ReducedModel, threshold: float) -> None:
    """Let every cut keep tokens from this keep probability on."""
    model.set_reduction(model.reduction.at_threshold(threshold))


def _right(model: ReducedModel, outputs: Outputs, batch: PackedBatch) -> float:
    return float(model.head.correct(outputs, batch.targets).sum())


def _point(model: ReducedModel, accuracy: float, lengths: list[list[int]]) -> ValidatedPoint:
    totals = [sum(column) for column in zip(*lengths, strict=True)]
    rules = [cut.rule for cut in model.reduction.cuts]
    return ValidatedPoint(
        threshold=rules[0].value if rules else 0.0,
        accuracy=accuracy,
        kept=tuple(left / totals[0] for left in totals[1:]),
        flops_speedup=speedup(model.spec, model.reduction, lengths),
    )
