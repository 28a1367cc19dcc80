"""Draws a sweep: accuracy against what is saved."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from trbert_deploy.bench.figures import write_figure
from trbert_deploy.bench.sweep import SweepReport

#: Told apart with any colour vision (Okabe and Ito 2008).
_CHAIN, _CURRENT, _DENSE = "#0072b2", "#d55e00", "#404040"


def write_sweep_plot(report: SweepReport, path: Path) -> None:
    """Write ``draw_sweep`` to ``path`` as PNG, whole or not at all."""
    write_figure(draw_sweep(report), path)


def draw_sweep(report: SweepReport) -> Figure:
    """Accuracy of the chain against its FLOPs speed-up, along the thresholds.

    The band is the 95 % interval of the change, laid on the dense model's accuracy: where the
    dashed line runs within it, the rows do not tell the two models apart.
    """
    dense, current = report.current.dense, report.current
    curve = sorted((point.quality for point in report.points), key=lambda each: each.flops_speedup)
    saved = [each.flops_speedup for each in curve]
    low, high = (
        [dense.accuracy + each.interval[side] / 100.0 for each in curve] for side in (0, 1)
    )
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    name = "teacher" if current.teacher else "dense model"
    axes.axhline(dense.accuracy, color=_DENSE, linestyle="--", linewidth=1.2, label=name)
    axes.fill_between(
        saved, low, high, color=_CHAIN, alpha=0.18, linewidth=0, label="95 % interval of the change"
    )
    axes.plot(
        saved,
        [each.reduced.accuracy for each in curve],
        color=_CHAIN,
        marker="o",
        markersize=4.5,
        label="reduced, by threshold",
    )
    axes.plot(
        current.flops_speedup,
        current.reduced.accuracy,
        color=_CURRENT,
        marker="D",
        markersize=8,
        linestyle="none",
        label=f"current rules: {current.flops_speedup:.2f}x, {current.reduced.accuracy:.1%}",
    )
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}x"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"FLOPs speed-up over the {name}")
    axes.set_ylabel(f"accuracy on {current.rows:,} texts")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure
