"""Draws sweeps: quality against what is saved, and against measured latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from trbert_deploy.bench.tradeoff import (
    ATTENTION,
    EXITS,
    RANDOM,
    REDUCED,
    TRUNCATION,
    TradeoffReport,
)
from trbert_deploy.evaluation.sweep import SweepReport
from trbert_deploy.reports.plots.figure import write_figure

#: Told apart with any colour vision (Okabe and Ito 2008).
_CHAIN, _CURRENT, _DENSE = "#0072b2", "#d55e00", "#404040"
#: Model -> colour, marker, and what it is.
_CURVES = {
    REDUCED: (_CHAIN, "o", "reduced, by threshold"),
    TRUNCATION: ("#009e73", "v", "first tokens"),
    RANDOM: ("#cc79a7", "x", "random tokens"),
    ATTENTION: ("#e69f00", "^", "most attention received"),
}
#: Points where texts leave early, and the best of all of the chain's.
_EXIT_POINTS: dict[str, Any] = {
    "color": "#56b4e9",
    "marker": "*",
    "linestyle": "none",
    "label": "reduced, with exits",
}
_FRONT: dict[str, Any] = {
    "color": "#56b4e9",
    "linewidth": 3.5,
    "alpha": 0.5,
    "label": "best of both",
    "zorder": 1,
}


def write_sweep_plot(report: SweepReport, path: Path) -> None:
    """Write ``draw_sweep`` to ``path`` as PNG, whole or not at all."""
    write_figure(draw_sweep(report), path)


def draw_sweep(report: SweepReport) -> Figure:
    """Accuracy of the chain against its FLOPs speed-up, along the thresholds.

    The band is the 95 % interval of the change, laid on the dense model's score: where the
    dashed line runs within it, the rows do not tell the two models apart.
    """
    dense, current = report.current.dense, report.current
    thresholds = (point.quality for point in report.to_the_end)
    curve = sorted(thresholds, key=lambda each: each.flops_speedup)
    saved = [each.flops_speedup for each in curve]
    low, high = ([dense.score + each.interval[side] / 100.0 for each in curve] for side in (0, 1))
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    name = "teacher" if current.teacher else "dense model"
    axes.axhline(dense.score, color=_DENSE, linestyle="--", linewidth=1.2, label=name)
    axes.fill_between(
        saved, low, high, color=_CHAIN, alpha=0.18, linewidth=0, label="95 % interval of the change"
    )
    axes.plot(
        saved,
        [each.reduced.score for each in curve],
        color=_CHAIN,
        marker="o",
        markersize=4.5,
        label="reduced, by threshold",
    )
    if report.pairs:
        for points, style in ((report.pairs, _EXIT_POINTS), (report.front, _FRONT)):
            saved = [point.quality.flops_speedup for point in points]
            axes.plot(saved, [point.quality.reduced.score for point in points], **style)
    told = f"current rules: {current.flops_speedup:.2f}x, {current.reduced.score:.1%}"
    _mark(axes, (current.flops_speedup, current.reduced.score), _CURRENT, "D", told)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}x"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _clean(axes)
    axes.set_xlabel(f"FLOPs speed-up over the {name}")
    axes.set_ylabel(f"{current.measure} on {current.rows:,} texts")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def write_tradeoff_plot(report: TradeoffReport, path: Path) -> None:
    """Write ``draw_tradeoff`` to ``path`` as PNG, whole or not at all."""
    write_figure(draw_tradeoff(report), path)


def draw_tradeoff(report: TradeoffReport, width: float = 7.0, height: float = 4.6) -> Figure:
    """Accuracy against mean latency: the chain over its threshold, the dense model, baselines.

    The band is the 95 % interval of the chain's change against the dense model.

    Args:
        width, height: of the figure, in inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    dense = report.dense.score
    if report.of(EXITS):
        for points, style in ((report.of(EXITS), _EXIT_POINTS), (report.front, _FRONT)):
            times = [point.latency_ms for point in points]
            axes.plot(times, [point.score for point in points], **style)
    for model in reversed([name for name in report.models if name in _CURVES]):  # chain on top
        points = report.of(model)
        color, marker, label = _CURVES[model]
        times = [point.latency_ms for point in points]
        if model == REDUCED:
            low, high = (
                [dense + point.interval[side] / 100.0 for point in points] for side in (0, 1)
            )
            axes.fill_between(times, low, high, color=color, alpha=0.15, linewidth=0)
        scores = [point.score for point in points]
        axes.plot(times, scores, color=color, marker=marker, markersize=5, label=label)
    for name, point, color, marker in (
        ("dense", report.dense, _DENSE, "s"),
        ("current rules", report.current, _CURRENT, "D"),
    ):
        told = f"{name}: {point.latency_ms:.1f} ms, {point.score:.1%}"
        _mark(axes, (point.latency_ms, point.score), color, marker, told)
    axes.set_xlim(left=0.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _clean(axes)
    axes.set_xlabel(f"mean ms per text, {report.backend}")
    axes.set_ylabel(f"{report.measure} on {report.rows:,} texts")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _mark(axes: Axes, place: tuple[float, float], color: str, marker: str, label: str) -> None:
    """A single large mark."""
    axes.plot(*place, color=color, marker=marker, markersize=8, linestyle="none", label=label)


def _clean(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
