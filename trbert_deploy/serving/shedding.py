"""Operating points that a service moves to as requests wait: it drops more before it refuses.

What each point costs and how far its answers are the dense model's is measured once, on the texts
that lie in the bundle, and remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trbert_deploy.errors import ConfigError
from trbert_deploy.flops import speedup
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.autotune.cache import remembered
from trbert_deploy.runtime.autotune.conditions import chain_conditions
from trbert_deploy.runtime.autotune.latency_budget import THRESHOLDS
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.task import mean_agreement

#: Share of what may wait up to which the model stays at its own operating point.
FREE_SHARE = 0.25
#: A point that saves less than this, over the one before it, is none of its own.
_STEP = 1.05


@dataclass(frozen=True)
class Shedding:
    """The points of a model that a load makes it move to, each cheaper than the one before.

    Attributes:
        points: none where nothing cheaper answers well enough.
    """

    points: tuple[OperatingPoint, ...]

    def point_at(self, load: float) -> OperatingPoint | None:
        """Where a batch runs; the model's own point where None.

        Args:
            load: share of what may wait that waits, from 0 to 1.
        """
        if load < FREE_SHARE or not self.points:
            return None
        place = int((load - FREE_SHARE) / (1.0 - FREE_SHARE) * len(self.points))
        return self.points[min(place, len(self.points) - 1)]


@dataclass(frozen=True)
class Measured:
    """An operating point on the sample texts.

    Attributes:
        agreement: how far its answers are the dense model's, from 0 to 1.
        saving: FLOPs of the dense model over its own.
    """

    agreement: float
    saving: float


def shedding_of(
    pipeline: Pipeline,
    min_agreement: float,
    note: Callable[[str], None],
    progress: Progress = no_progress,
) -> Shedding:
    """The points of a model that it may move to.

    Args:
        min_agreement: with the dense model's answers, from 0 to 1; no point answers below it.
        note: told what was found.

    Raises:
        ConfigError: the model drops nothing, or its bundle has no sample texts.
    """
    name, bundle = pipeline.path, pipeline.require_bundle()
    if not pipeline.reduction.cuts:
        raise ConfigError(f"{name} drops no tokens: there is nothing to shed; leave out --shed")
    if not bundle.samples():
        raise ConfigError(
            f"{name} has no sample texts to measure operating points on (export --samples puts "
            "those of the training in): leave out --shed"
        )
    found = remembered(
        "agreement",
        chain_conditions(bundle, pipeline.chain),
        lambda: _measure(pipeline, progress),
        note,
    )
    own, *rest = (Measured(agreement, saving) for agreement, saving in found)
    points = choose(own, list(zip(THRESHOLDS, rest, strict=True)), min_agreement)
    if points:
        last = dict(zip(THRESHOLDS, rest, strict=True))[points[-1]]
        note(
            f"under load from {own.saving:.2f}x to {last.saving:.2f}x fewer FLOPs in {len(points)} "
            f"steps (agreement with the dense model {own.agreement:.1%} to {last.agreement:.1%})"
        )
    else:
        note(
            f"nothing is shed: no threshold saves more than the model's own point (agreement "
            f"{own.agreement:.1%}) and agrees with the dense model on {min_agreement:.1%}"
        )
    return Shedding(tuple(map(OperatingPoint, points)))


def choose(
    own: Measured, measured: Sequence[tuple[float, Measured]], min_agreement: float
) -> list[float]:
    """Thresholds that save more and more over a model's own point, and agree well enough.

    The first that agrees too little ends them: what drops still more is not trusted, even if it
    happens to agree on the sample texts.

    Args:
        measured: by rising threshold.
    """
    found: list[float] = []
    saving = own.saving
    for threshold, point in measured:
        if point.saving < saving * _STEP:
            continue
        if point.agreement < min_agreement:
            break
        found.append(threshold)
        saving = point.saving
    return found


def _measure(pipeline: Pipeline, progress: Progress) -> list[list[float]]:
    """Agreement and saving of the model's own point, and then of each threshold."""
    samples = pipeline.require_bundle().samples()
    rows = [part for row in pipeline.ask(samples).rows for part in row.parts]
    chain, task = pipeline.chain, pipeline.task
    dense = [result.outputs for result in chain.run_dense(rows)]

    def measured(chain: Chain) -> list[float]:
        results = chain.run(rows)
        tokens = [[len(row), *map(len, each.kept)] for row, each in zip(rows, results, strict=True)]
        return [
            mean_agreement(task, dense, [result.outputs for result in results]),
            speedup(pipeline.encoder, chain.reduction, tokens),
        ]

    chains = [chain, *(chain.at(OperatingPoint(threshold)) for threshold in THRESHOLDS)]
    found = []
    for place, each in enumerate(chains):
        progress("measure agreement", place, len(chains))
        found.append(measured(each))
    progress("measure agreement", len(chains), len(chains))
    return found
