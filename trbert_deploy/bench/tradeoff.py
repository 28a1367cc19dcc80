"""Quality against measured latency: the chain at several thresholds, and its baselines.

Of a model with exits the chain is measured twice: where every text reaches the end, as the
baselines do, and where texts leave, at pairs of threshold and confidence.

Every text is a call of its own. All models answer it in turns, so that what slows the machine meets
all of them, and the latency of a model is its mean over the texts, from tokens to logits, on
graphs that have met every length before. The baselines (baselines.py) aim at FLOPs that points of
the chain have; time is then measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trbert_deploy.bench.baselines import (
    count_for,
    first_tokens,
    replay,
    select_by_chance,
    with_ratio,
)
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.evaluation.quality import ModelRun, QualityReport, compare_runs, tokenize
from trbert_deploy.evaluation.sweep import at_pair, best_of, pairs_to_sweep, points_to_sweep
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.scorers import Survival
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.tasks.examples import Example

DENSE, REDUCED, EXITS = "dense", "reduced", "exits"
ALL, TOKENS = "all", "tokens"
TRUNCATION, RANDOM, ATTENTION = BASELINES = ("truncation", "random", "attention")
#: Every so many points of the chain have baselines.
BASELINES_EVERY = 2


@dataclass(frozen=True)
class TradeoffPoint:
    """A model at one operating point.

    Attributes:
        model: ``dense``, ``reduced``, ``exits`` for the latter where texts leave early, or a
            baseline.
        kind: what sets the operating point: ``threshold``, ``ratio``, ``tokens``, or ``all``.
        value: to what; for the rules in force the first cut's.
        latency_ms: mean of a text.
        score: by the measure of the report.
        score_change: against the dense model, in points; with its 95 % interval.
        flops_speedup: FLOPs of the dense model over the model's.
        exit_confidence: from which texts leave, where that is swept.
    """

    model: str
    kind: str
    value: float
    latency_ms: float
    score: float
    score_change: float
    interval: tuple[float, float]
    flops_speedup: float
    exit_confidence: float | None = None

    @property
    def setting(self) -> str:
        """The operating point in words."""
        if self.kind == ALL:
            return "all tokens"
        leaving = ""
        if self.exit_confidence is not None:
            leaving = f", exits above {self.exit_confidence:.3f}"
        if self.kind == TOKENS:
            return f"{self.value:g} tokens{leaving}"
        return f"{self.kind} {self.value:.3f}{leaving}"


@dataclass(frozen=True)
class _Contender:
    """A model before it has answered; ``kind`` and ``value`` as in ``TradeoffPoint``."""

    model: str
    kind: str
    value: float
    run: ModelRun
    exit_confidence: float | None = None

    def point(self, report: QualityReport) -> TradeoffPoint:
        return TradeoffPoint(
            model=self.model,
            kind=self.kind,
            value=self.value,
            latency_ms=1e3 * report.reduced.seconds / report.rows,
            score=report.reduced.score,
            score_change=report.score_change,
            interval=report.interval,
            flops_speedup=report.flops_speedup,
            exit_confidence=self.exit_confidence,
        )


@dataclass(frozen=True)
class TradeoffReport:
    """All models on the same texts.

    Attributes:
        backend: what all ran on.
        measure: what they are judged by.
        rows: how many texts.
        dense: the dense model.
        current: the chain with the rules that are in force.
        points: the chain and its baselines, by model, then by falling latency.
        notes: what a reader should know besides.
    """

    backend: str
    measure: str
    rows: int
    dense: TradeoffPoint
    current: TradeoffPoint
    points: tuple[TradeoffPoint, ...]
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The chain and the baselines that could be measured."""
        return tuple(dict.fromkeys(point.model for point in self.points))

    def of(self, model: str) -> list[TradeoffPoint]:
        """The points of one model, by falling latency."""
        return [point for point in self.points if point.model == model]

    @property
    def front(self) -> list[TradeoffPoint]:
        """The points of the chain, with exits and without, that no other one of them beats in both
        quality and latency, by falling latency.
        """
        own = [*self.of(REDUCED), *self.of(EXITS)]
        return best_of(own, lambda point: point.latency_ms, lambda point: point.score)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_tradeoff(
    pipeline: Pipeline, texts: Sequence[Example], *, progress: Progress = no_progress
) -> TradeoffReport:
    """Measure the chain over its threshold, the dense model, and the baselines.

    Args:
        texts: labelled or not.

    Raises:
        ConfigError: the model has no cuts.
        DataError: as ``evaluate_quality``.
    """
    thresholds = points_to_sweep(pipeline, texts, progress=progress)
    pairs = pairs_to_sweep(pipeline, texts, [*thresholds], progress)
    whole = pipeline.to_the_end()
    notes: list[str] = []
    rule = pipeline.reduction.cuts[0].rule
    kind = TOKENS if rule.kind == "budget" else rule.kind
    contenders = [_Contender(REDUCED, kind, rule.value, ModelRun(pipeline))]
    contenders += [
        _Contender(REDUCED, "threshold", threshold, ModelRun(whole.at_threshold(threshold)))
        for threshold in thresholds
    ]
    contenders += [
        _Contender(
            EXITS, "threshold", threshold, ModelRun(at_pair(pipeline, threshold, sure)), sure
        )
        for threshold, sure in pairs
    ]
    progress("tokenize", 0, None)
    rows = tokenize(pipeline, texts)
    speedups = [*thresholds.values()][BASELINES_EVERY::BASELINES_EVERY]
    contenders += _baselines(whole, rows, speedups, notes.append, progress)
    _meet_lengths(pipeline, rows, progress)
    runs = [contender.run for contender in contenders]
    reports = compare_runs(runs, texts, batch_size=1, progress=progress)
    current, *others = (
        contender.point(report) for contender, report in zip(contenders, reports, strict=True)
    )
    order = (REDUCED, EXITS, *BASELINES)
    runner = pipeline.chain.backend.description
    return TradeoffReport(
        backend=f"{runner['backend']} {runner['precision']}",
        measure=reports[0].measure,
        rows=len(texts),
        dense=_dense(reports[0]),
        current=current,
        points=tuple(
            sorted(others, key=lambda point: (order.index(point.model), -point.latency_ms))
        ),
        notes=tuple(notes),
    )


def _meet_lengths(pipeline: Pipeline, rows: Sequence[TokenRow], progress: Progress) -> None:
    """Show the graphs every length once: a runtime that prepares itself for lengths that are new to
    it would do so at the cost of whichever model comes first.
    """
    whole = pipeline.to_the_end().at_threshold(0.0)
    different = {len(row): row for row in rows}.values()
    for number, row in enumerate(different, start=1):
        whole.run([row])
        pipeline.run([row], dense=True)
        progress("warm up", number, len(different))


def _baselines(
    pipeline: Pipeline,
    rows: Sequence[TokenRow],
    speedups: Sequence[float],
    note: Callable[[str], None],
    progress: Progress,
) -> Iterator[_Contender]:
    """The baselines at each of ``speedups`` that they can reach."""
    lengths = np.array([len(row) for row in rows])
    round_to = max(cut.rule.round_to for cut in pipeline.reduction.cuts)
    choosers = {RANDOM: _by_chance()}
    try:
        choosers[ATTENTION] = _by_attention(pipeline)
    except ModuleNotFoundError:
        note("attention is left out: it needs PyTorch, trbert-deploy[train]")
    except ConfigError as problem:
        note(f"attention is left out: {problem}")
    done, total = 0, len(speedups) * len(choosers) * len(rows)
    for speedup in speedups:
        with suppress(ConfigError):  # out of reach: then the curve ends before
            count = count_for(pipeline.encoder, lengths, speedup, round_to)
            run = ModelRun(pipeline, dense=True, view=first_tokens(count))
            yield _Contender(TRUNCATION, TOKENS, count, run)
        with suppress(ConfigError):
            reduction = with_ratio(pipeline.encoder, pipeline.reduction, lengths, speedup)
            for name, choose in choosers.items():
                survivals = []
                for row in rows:
                    survivals.append(choose(row, reduction))
                    progress("choose tokens for the baselines", done := done + 1, total)
                ratio = reduction.cuts[0].rule.value
                run = ModelRun(replay(pipeline, rows, survivals))
                yield _Contender(name, "ratio", ratio, run)


#: (row, cuts with their rules) -> what survives.
Chooser = Callable[[TokenRow, ReductionConfig], Survival]


def _by_chance() -> Chooser:
    generator = np.random.default_rng(0)
    return lambda row, reduction: select_by_chance(row, reduction, generator)


def _by_attention(pipeline: Pipeline) -> Chooser:
    """Raises: ModuleNotFoundError: no PyTorch; ConfigError: these cuts see no attention."""
    from trbert_deploy.modeling.received_attention import attending_layers, select_by_attention
    from trbert_deploy.modeling.torch_backend import load_model

    attending_layers(pipeline.reduction)
    model = load_model(pipeline.require_bundle())
    return lambda row, reduction: select_by_attention(model, row, reduction)


def _dense(report: QualityReport) -> TradeoffPoint:
    latency = 1e3 * report.dense.seconds / report.rows
    score = report.dense.score
    return TradeoffPoint(DENSE, ALL, 1.0, latency, score, 0.0, (0.0, 0.0), 1.0)
