"""Makes the table and the picture of one or several comparisons.

    python benchmarks/quality/tables.py DIR [DIR ...] [--plot FILE.png]

Rows of the same name in several DIRs (folds, or teachers) and seeds are averaged. Differences are
taken text by text against the teacher of the same DIR. Test figures are shown where every row has
them, else validation figures.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray
from rows import ROWS
from runs import FIXED

from trbert_deploy.commands.options import png_file
from trbert_deploy.errors import DataError, TrbertError
from trbert_deploy.evaluation.metrics import paired_change
from trbert_deploy.files import read_json
from trbert_deploy.reports.plots.figure import write_figure
from trbert_deploy.tasks.registry import TASKS

#: Told apart with any colour vision (Okabe and Ito 2008), and by their markers.
STYLES = {
    "ours": ("#0072b2", "o"),
    "tr-bert": ("#56b4e9", "v"),
    "truncate": ("#d55e00", "s"),
    "head-tail": ("#e69f00", "D"),
    "random": ("#7f7f7f", "x"),
    "attention": ("#009e73", "^"),
    "fixed-ratio": ("#cc79a7", "P"),
    "chunks-mean": ("#f0e442", "h"),
    "chunks-max": ("#f0e442", "H"),
    "student-3": ("#000000", "*"),
    "student-2": ("#000000", "*"),
}
_TEACHER = "#404040"
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Line:
    """A line of the table: one row in several runs.

    Attributes:
        name: of the row, with its variant.
        runs: figures of each run, with those of its teacher under ``teacher``.
    """

    name: str
    runs: Sequence[dict[str, Any]]

    @property
    def row(self) -> str:
        return str(self.runs[0]["row"])

    def has(self, split: str) -> bool:
        return all(split in run for run in self.runs)

    def mean(self, split: str, figure: str) -> float:
        return statistics.fmean(run[split][figure] for run in self.runs)

    def spread(self, split: str, figure: str) -> float:
        """Standard deviation over the runs, 0 of one."""
        values = [run[split][figure] for run in self.runs]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    @property
    def minutes(self) -> float:
        return statistics.fmean(sum(run["training_seconds"].values()) for run in self.runs) / 60

    def difference(self, split: str) -> tuple[float, tuple[float, float]]:
        """Points over the teacher, and their 95 % interval by paired bootstrap over the texts.

        Of several runs on the same texts (seeds) it is the mean, so that each text counts once.
        """
        by_data: dict[str, list[dict[str, Any]]] = {}
        for run in self.runs:
            by_data.setdefault(run[split]["data"], []).append(run)
        seeds = max(len(runs) for runs in by_data.values())
        lines, teachers = [], []
        for runs in by_data.values():
            all_seeds = [runs[seed % len(runs)] for seed in range(seeds)]
            lines.append(np.hstack([run[split]["statistics"] for run in all_seeds]))
            teachers.append(np.hstack([run["teacher"][split]["statistics"] for run in all_seeds]))
        measured = TASKS[self.runs[0]["task"], self.runs[0]["problem"]].measured

        def mean(statistics: NDArray[np.float64]) -> float:
            return float(np.mean([measured(part) for part in np.hsplit(statistics, seeds)]))

        change = paired_change(mean, np.concatenate(teachers), np.concatenate(lines))
        low, high = change.interval
        return 100.0 * change.value, (100.0 * low, 100.0 * high)


def read_lines(directories: Sequence[Path]) -> list[Line]:
    """The lines of the table, in the order of ``ROWS``, then of what is saved.

    Raises:
        DataError: a directory without figures, or without those of the teacher.
    """
    lines: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for directory in directories:
        files = sorted((directory / "results").glob("*.json"))
        runs = [read_json(path) for path in files]
        teacher = next((run for run in runs if run["row"] == "teacher"), None)
        if teacher is None:
            raise DataError(f"{directory} has no figures of a teacher: run --row teacher there")
        for run in runs:
            wanted = 0.0 if run["row"].startswith(FIXED) else run["target_speedup"]
            key = (run["row"], run["variant"], wanted)
            lines.setdefault(key, []).append({**run, "teacher": teacher})
    order = sorted(lines, key=lambda key: (list(ROWS).index(key[0]), *key[1:]))
    return [Line(" ".join(filter(None, key[:2])), lines[key]) for key in order]


def shown_split(lines: Sequence[Line]) -> str:
    """The test, where every row has been tested."""
    return "test" if all(line.has("test") for line in lines) else "validation"


def markdown(lines: Sequence[Line]) -> str:
    """The table."""
    split = shown_split(lines)
    timed = any(line.has("time") for line in lines)
    titles = ["row", "runs", "FLOPs speed-up", *(["measured speed-up"] if timed else [])]
    titles += [*SPLITS, f"over the teacher, {split} [95 %]", "training minutes"]
    table = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for line in lines:
        cells = [line.name, str(len(line.runs)), f"{line.mean(split, 'flops_speedup'):.2f}x"]
        if timed:
            cells.append(f"{line.mean('time', 'speedup'):.2f}x" if line.has("time") else "-")
        for each in SPLITS:
            score = f"{line.mean(each, 'score'):.2%}" if line.has(each) else "-"
            if line.has(each) and len(line.runs) > 1:
                score += f" ± {100 * line.spread(each, 'score'):.2f}"
            cells.append(score)
        if line.row == "teacher":
            cells += ["-", "-"]
        else:
            change, (low, high) = line.difference(split)
            cells += [f"{change:+.2f} [{low:+.2f}, {high:+.2f}]", f"{line.minutes:.0f}"]
        table.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def draw(lines: Sequence[Line]) -> Figure:
    """Quality against what is saved: in FLOPs, and in time where it was measured.

    Marks are trained rows; a thin line is what one of them comes to at other thresholds.
    """
    split = shown_split(lines)
    panels = [("FLOPs speed-up over the teacher", lambda line: line.mean(split, "flops_speedup"))]
    if all(line.has("time") for line in lines):
        panels.append(("measured speed-up", lambda line: line.mean("time", "speedup")))
    figure = Figure(figsize=(7.0 * len(panels), 4.6), layout="constrained")
    panes = figure.subplots(1, len(panels), squeeze=False)[0]
    if split == "validation":  # other thresholds are not looked at on test texts
        _draw_thresholds(panes[0], lines)
    for axes, (title, saved) in zip(panes, panels, strict=True):
        _draw_panel(axes, lines, split, saved)
        axes.set_xlabel(title)
    return figure


def _draw_panel(
    axes: Axes, lines: Sequence[Line], split: str, saved: Callable[[Line], float]
) -> None:
    teacher = next(line for line in lines if line.row == "teacher")
    level = teacher.mean(split, "score")
    axes.axhline(level, color=_TEACHER, linestyle="--", linewidth=1.2)
    names: dict[str, list[Line]] = {}
    for line in lines:
        if line is not teacher:
            names.setdefault(line.name, []).append(line)
    labels = []
    for name, points in names.items():
        color, marker = STYLES[points[0].row]
        points = sorted(points, key=saved)
        heights = [point.mean(split, "score") for point in points]
        spreads = [point.spread(split, "score") for point in points]
        axes.errorbar(
            [saved(point) for point in points],
            heights,
            yerr=spreads if any(spreads) else None,
            color=color,
            marker=marker,
            markersize=7,
            linewidth=1.5 if len(points) > 1 else 0,
            elinewidth=1.0,
            capsize=2,
        )
        labels.append((name, color, saved(points[-1]), heights[-1]))
    axes.margins(x=0.12, y=0.12)
    axes.set_xlim(left=1.0)  # where the teacher is
    _label(axes, labels)
    left, bottom = axes.get_xlim()[0], level
    axes.annotate(
        f"teacher {level:.1%}",
        (left, bottom),
        xytext=(4, 3),
        textcoords="offset points",
        color=_TEACHER,
    )
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}x"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    (measure,) = {next(iter(run[split]["metrics"])) for run in teacher.runs}
    axes.set_ylabel(f"{split} {measure}")


def _draw_thresholds(axes: Axes, lines: Sequence[Line]) -> None:
    """What each trained model comes to as its threshold is moved, against FLOPs."""
    for line in lines:
        for run in line.runs:
            if points := run["validation"].get("points"):
                saved = [point["flops_speedup"] for point in points]
                heights = [point["score"] for point in points]
                color, _ = STYLES[line.row]
                axes.plot(saved, heights, color=color, alpha=0.45, linewidth=1)


def _label(axes: Axes, labels: Sequence[tuple[str, str, float, float]]) -> None:
    """Names right of the panel, pushed apart where they would overlap, each with a line to it."""
    low, high = axes.get_ylim()
    step = (high - low) / 18
    free = high
    for name, color, x, y in sorted(labels, key=lambda label: -label[3]):
        free = min(y, free - step)
        axes.annotate(
            name,
            (x, y),
            xytext=(1.02, free),
            textcoords=axes.get_yaxis_transform(),
            color=color,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkB": 5,
            },
        )


@click.command()
@click.argument(
    "directories",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=png_file,
    help="Draw quality against what is saved.",
)
def main(directories: tuple[Path, ...], plot: Path | None) -> None:
    """Print the table of the comparisons in DIRECTORIES, in Markdown."""
    try:
        lines = read_lines(directories)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    click.echo(markdown(lines))
    if plot is not None:
        write_figure(draw(lines), plot)


if __name__ == "__main__":
    main()
