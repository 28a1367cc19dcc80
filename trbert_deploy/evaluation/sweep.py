"""Sweeps the threshold: what quality costs how much, at operating points from 1x on.

Of a model with exits operating points are pairs: beside the thresholds, where every row reaches the
end, some of them are swept again at several confidences from which rows leave.

The points are chosen on a few of the rows, without their labels, and evaluated on all of them,
against one run of the dense model. To choose an operating point by its quality, sweep over
validation data: on test data the choice would flatter it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from trbert_deploy.errors import ConfigError
from trbert_deploy.evaluation.quality import (
    ModelRun,
    QualityReport,
    evaluate_points,
    run_in_turns,
    true_targets,
)
from trbert_deploy.flops import speedup
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.backends.backend import RowsBackend
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.examples import Example

POINTS = 9
SAMPLE_ROWS = 64
PROBES = 16
#: Thresholds are given to so many decimals, which bounds the logits that they stand for.
DECIMALS = 6
_FARTHEST = math.log(10.0**DECIMALS - 1.0)
#: Logits closer than this are not probed between: the speed-up jumps there.
_CLOSEST = 0.05
#: Confidences at which exits are swept, and at which of the thresholds.
CONFIDENCES = 3
EXITS_EVERY = 2


@dataclass(frozen=True)
class SweepPoint:
    """The model at one operating point.

    Attributes:
        threshold: keep probability from which tokens survive.
        quality: against the dense model.
        exit_confidence: from which rows leave; None where all reach the end.
    """

    threshold: float
    quality: QualityReport
    exit_confidence: float | None = None

    def to_json(self) -> dict[str, Any]:
        quality = self.quality.to_json()
        shared = ("backend", "teacher", "rows", "tokens_per_row", "dense")
        own = {name: value for name, value in quality.items() if name not in shared}
        confidence = {}
        if self.exit_confidence is not None:
            confidence = {"exit_confidence": self.exit_confidence}
        return {"threshold": self.threshold, **confidence, **own}


@dataclass(frozen=True)
class SweepReport:
    """The model along its thresholds.

    Attributes:
        current: with the rules that are in force.
        points: by rising threshold; the first one keeps every token. Those where rows leave come
            last.
    """

    current: QualityReport
    points: tuple[SweepPoint, ...]

    @property
    def to_the_end(self) -> tuple[SweepPoint, ...]:
        """The points where every row reaches the end."""
        return tuple(point for point in self.points if point.exit_confidence is None)

    @property
    def pairs(self) -> tuple[SweepPoint, ...]:
        """The others; none of a model without exits."""
        return tuple(point for point in self.points if point.exit_confidence is not None)

    @property
    def front(self) -> tuple[SweepPoint, ...]:
        """The points that no other one beats in both quality and FLOPs, by rising speed-up."""
        best = best_of(
            self.points, lambda p: -p.quality.flops_speedup, lambda p: p.quality.reduced.score
        )
        return tuple(best)

    def to_json(self) -> dict[str, Any]:
        return {**self.current.to_json(), "sweep": [point.to_json() for point in self.points]}


def sweep_thresholds(
    pipeline: Pipeline,
    texts: Sequence[Example],
    *,
    teacher: Pipeline | None = None,
    progress: Progress = no_progress,
) -> SweepReport:
    """Compare the chain at several thresholds with the dense model (see ``evaluate_quality``).

    Raises:
        ConfigError: the model has no cuts.
        DataError: as ``evaluate_quality``.
    """
    thresholds = [*points_to_sweep(pipeline, texts, teacher, progress)]
    points: list[tuple[float, float | None]] = [(threshold, None) for threshold in thresholds]
    points += pairs_to_sweep(pipeline, texts, thresholds, progress)
    pipelines = [pipeline, *(at_pair(pipeline, *point) for point in points)]
    current, *reports = evaluate_points(pipelines, texts, teacher=teacher, progress=progress)
    swept = zip(points, reports, strict=True)
    return SweepReport(
        current,
        tuple(SweepPoint(threshold, report, sure) for (threshold, sure), report in swept),
    )


def at_pair(pipeline: Pipeline, threshold: float, confidence: float | None) -> Pipeline:
    """The model at a threshold, where rows leave from a confidence on; at the end alone if None."""
    if confidence is None:
        return pipeline.to_the_end().at_threshold(threshold)
    return pipeline.at(OperatingPoint(threshold, exit_confidence=confidence))


def pairs_to_sweep(
    pipeline: Pipeline,
    texts: Sequence[Example],
    thresholds: Sequence[float],
    progress: Progress = no_progress,
) -> list[tuple[float, float | None]]:
    """Pairs of threshold and confidence, on some of ``thresholds``; none without exits.

    The confidences are chosen on a few of ``texts``, at the middle threshold, in equal ratios of
    what they save.
    """
    if pipeline.reduction.exits is None or isinstance(pipeline.chain.backend, RowsBackend):
        return []
    threshold = thresholds[len(thresholds) // 2]
    sample = texts[:: math.ceil(len(texts) / SAMPLE_ROWS)]

    def saving(doubt: float) -> float:
        return _saving(at_pair(pipeline, threshold, 1.0 - doubt), sample)

    steps = _spread(saving, CONFIDENCES + 1, "choose confidences", progress)
    confidences = sorted({round(1.0 - doubt, DECIMALS) for doubt in steps})
    return [
        (threshold, confidence)
        for threshold in thresholds[::EXITS_EVERY]
        for confidence in confidences
    ]


def points_to_sweep(
    pipeline: Pipeline,
    texts: Sequence[Example],
    teacher: Pipeline | None = None,
    progress: Progress = no_progress,
) -> dict[float, float]:
    """The points of a sweep (see ``spread_thresholds``), chosen on a few of ``texts``.

    Raises:
        ConfigError: the model has no cuts.
        DataError: as ``evaluate_quality``.
    """
    if not pipeline.reduction.cuts:
        raise ConfigError(f"{pipeline.path} has no cuts: there is no threshold to sweep over")
    true_targets(pipeline, texts, teacher)  # an error now, and not after the probing
    sample = texts[:: math.ceil(len(texts) / SAMPLE_ROWS)]
    return spread_thresholds(pipeline, sample, progress)


def spread_thresholds(
    pipeline: Pipeline, texts: Sequence[Example], progress: Progress = no_progress
) -> dict[float, float]:
    """Thresholds whose FLOPs speed-ups on ``texts`` stand in about equal ratios.

    They reach from 1x to a step before the end, where the first token alone survives. The
    speed-up is probed where it is known least (halving the widest gap, in keep logits) and
    interpolated.

    Returns:
        Threshold -> about what FLOPs speed-up it has; at most ``POINTS`` different ones,
        ascending, 0 among them.
    """

    whole = pipeline.to_the_end()

    def saving(threshold: float) -> float:
        return _saving(whole.at_threshold(threshold), texts)

    found = _spread(saving, POINTS, "choose thresholds", progress)
    return dict(sorted(({0.0: 1.0} | found).items()))


def _saving(pipeline: Pipeline, texts: Sequence[Example]) -> float:
    """The logarithm of a model's FLOPs speed-up."""
    run = ModelRun(pipeline)
    run_in_turns([run], texts)
    return math.log(speedup(pipeline.encoder, pipeline.reduction, run.tokens))


def _spread(
    saving: Callable[[float], float], points: int, step: str, progress: Progress
) -> dict[float, float]:
    """Probabilities at which savings stand in equal steps between both ends, these left out.

    Args:
        saving: probability -> logarithm of a speed-up, which rises with it.
        points: steps.
        step: what progress calls it.

    Returns:
        Probability -> about what speed-up it has.
    """
    logits = [-_FARTHEST, _FARTHEST]
    progress(step, 0, PROBES)
    savings = [saving(0.0), saving(1.0)]
    for probe in range(PROBES):
        gaps = np.diff(savings) * (np.diff(logits) > _CLOSEST)
        place = int(gaps.argmax()) + 1
        middle = (logits[place - 1] + logits[place]) / 2
        logits.insert(place, middle)
        savings.insert(place, saving(_probability(middle)))
        progress(step, probe + 1, PROBES)
    wanted = np.linspace(savings[0], savings[-1], points, endpoint=False)[1:]
    # Which tokens reach a later cut depends on the threshold too, so saving may dip a little.
    found = np.interp(wanted, np.maximum.accumulate(savings), logits)
    places = (round(_probability(logit), DECIMALS) for logit in found)
    return dict(zip(places, np.exp(wanted).tolist(), strict=True))


Point = TypeVar("Point")


def best_of(
    points: Iterable[Point], cost: Callable[[Point], float], value: Callable[[Point], float]
) -> list[Point]:
    """The points that no other one beats in both cost and value (the Pareto front), by falling
    cost.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (cost(each), -value(each))):
        if not front or value(point) > value(front[-1]):
            front.append(point)
    return front[::-1]


def _probability(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))
