"""Sweeps the threshold: what quality costs how much, at operating points from 1x on.

The points are chosen on a few of the rows, without their labels, and evaluated on all of them,
against one run of the dense model. To choose an operating point by its quality, sweep over
validation data: on test data the choice would flatter it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.tasks.task import Example

POINTS = 9
SAMPLE_ROWS = 64
PROBES = 16
#: Thresholds are given to so many decimals, which bounds the logits that they stand for.
DECIMALS = 6
_FARTHEST = math.log(10.0**DECIMALS - 1.0)
#: Logits closer than this are not probed between: the speed-up jumps there.
_CLOSEST = 0.05


@dataclass(frozen=True)
class SweepPoint:
    """The model at one threshold."""

    threshold: float
    quality: QualityReport

    def to_json(self) -> dict[str, Any]:
        quality = self.quality.to_json()
        shared = ("backend", "teacher", "rows", "tokens_per_row", "dense")
        own = {name: value for name, value in quality.items() if name not in shared}
        return {"threshold": self.threshold, **own}


@dataclass(frozen=True)
class SweepReport:
    """The model along its thresholds.

    Attributes:
        current: with the rules that are in force.
        points: by rising threshold; the first one keeps every token.
    """

    current: QualityReport
    points: tuple[SweepPoint, ...]

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
    pipelines = [pipeline, *map(pipeline.at_threshold, thresholds)]
    current, *reports = evaluate_points(pipelines, texts, teacher=teacher, progress=progress)
    return SweepReport(current, tuple(map(SweepPoint, thresholds, reports)))


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

    def saving(threshold: float) -> float:
        run = ModelRun(pipeline.at_threshold(threshold))
        run_in_turns([run], texts)
        return math.log(speedup(pipeline.encoder, pipeline.reduction, run.tokens))

    logits = [-_FARTHEST, _FARTHEST]
    progress("choose thresholds", 0, PROBES)
    savings = [saving(0.0), saving(1.0)]
    for probe in range(PROBES):
        gaps = np.diff(savings) * (np.diff(logits) > _CLOSEST)
        place = int(gaps.argmax()) + 1
        middle = (logits[place - 1] + logits[place]) / 2
        logits.insert(place, middle)
        savings.insert(place, saving(_probability(middle)))
        progress("choose thresholds", probe + 1, PROBES)
    wanted = np.linspace(savings[0], savings[-1], POINTS, endpoint=False)[1:]
    # Which tokens reach a later cut depends on the threshold too, so saving may dip a little.
    found = np.interp(wanted, np.maximum.accumulate(savings), logits)
    thresholds = (round(_probability(logit), DECIMALS) for logit in found)
    points = {0.0: 1.0} | dict(zip(thresholds, np.exp(wanted).tolist(), strict=True))
    return dict(sorted(points.items()))


def _probability(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))
