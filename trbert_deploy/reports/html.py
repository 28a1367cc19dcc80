"""A benchmark as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from trbert_deploy.bench.timing import BackendBench, BenchReport, ModelTiming
from trbert_deploy.bench.tradeoff import TradeoffReport
from trbert_deploy.evaluation.kept import KeptText, Piece
from trbert_deploy.evaluation.quality import QualityReport
from trbert_deploy.files import staged_file
from trbert_deploy.reports.console.bench import (
    TRADEOFF_NOTE,
    dense_wins,
    figures_of,
    quality_change,
    quality_rows,
    tradeoff_headings,
    tradeoff_rows,
)
from trbert_deploy.reports.plots.kept import cut_colors, cut_name
from trbert_deploy.reports.plots.sweeps import draw_tradeoff

_DENSE, _REDUCED = "#404040", "#0072b2"
#: Segments, one after the other, and last what is outside the graphs (Okabe and Ito 2008).
_SEGMENTS = ("#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#e69f00")
_OUTSIDE = "#d55e00"
_WIDTH = 4.6  # inches: narrow enough to be read on a phone
_SHOWN_TEXTS = 6


@dataclass(frozen=True)
class Fragment:
    """Characters of a text that met the same fate.

    Attributes:
        text: the characters; white space between two tokens belongs to the first.
        passed: cuts that they survived, 0 to C.
    """

    text: str
    passed: int


def write_html(
    report: BenchReport,
    texts: Sequence[KeptText],
    path: Path,
    tradeoff: TradeoffReport | None = None,
    quality: QualityReport | None = None,
    to_the_end: QualityReport | None = None,
) -> None:
    """Write a benchmark as a page, whole or not at all.

    Args:
        report: what was measured.
        texts: what the chain kept of real texts; none where there are no cuts.
        tradeoff: quality against latency, if that was measured.
        quality: on held-out texts, if that was.
        to_the_end: the same if no text left at an exit, which tells what dropped tokens alone do.
    """
    page = render(report, texts, tradeoff, quality, to_the_end)
    with staged_file(path) as staging:
        staging.write_text(page, encoding="utf-8")


def render(
    report: BenchReport,
    texts: Sequence[KeptText],
    tradeoff: TradeoffReport | None = None,
    quality: QualityReport | None = None,
    to_the_end: QualityReport | None = None,
) -> str:
    """The page as a string."""
    cuts = [float(cut["position"]) for cut in report.bundle["cuts"]]
    environment = Environment(
        loader=PackageLoader("trbert_deploy.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        backends=[
            {
                "bench": bench,
                "figures": figures_of(bench.points),
                "dense_wins": list(dense_wins(bench)),
                "latency": _svg(f"latency{number}", draw_latency, bench),
                "time": _svg(f"time{number}", draw_time, bench),
            }
            for number, bench in enumerate(report.backends)
        ],
        quality=quality,
        quality_headings=["tokens dropped", "and exits"] if to_the_end else ["reduced"],
        quality_rows=[] if quality is None else _quality_rows(quality, to_the_end),
        quality_change="" if quality is None else quality_change(quality),
        tradeoff=tradeoff,
        tradeoff_headings=[] if tradeoff is None else tradeoff_headings(tradeoff),
        tradeoff_note=TRADEOFF_NOTE,
        tradeoff_rows=[] if tradeoff is None else list(tradeoff_rows(tradeoff)),
        tradeoff_plot=""
        if tradeoff is None
        else _svg("tradeoff", draw_tradeoff, tradeoff, _WIDTH, 4.2),
        cut_names=[cut_name(cut) for cut in cuts],
        colors=cut_colors(len(cuts)),
        kept=_svg("kept", draw_kept, texts, cuts) if texts else "",
        traced=len(texts),
        texts=[(text, fragments(text)) for text in texts[:_SHOWN_TEXTS]],
    )


def _quality_rows(quality: QualityReport, to_the_end: QualityReport | None) -> list[list[str]]:
    """The cells of each line: what it is, the dense model, if no text left early, the chain."""
    rows = list(quality_rows(quality))
    if to_the_end is None:
        return [list(cells) for cells in rows]
    alone = {name: cell for name, _, cell in quality_rows(to_the_end)}
    return [[name, dense, alone.get(name, ""), own] for name, dense, own in rows]


def draw_latency(bench: BackendBench) -> Figure:
    """Typical latency of both models against the length of the rows, one line per batch."""
    figure, axes = _figure(height=3.0)
    batches = sorted({point.batch for point in bench.points})
    for place, batch in enumerate(batches):
        points = sorted(
            (point for point in bench.points if point.batch == batch),
            key=lambda point: point.length,
        )
        lengths = [point.length for point in points]
        suffix = f", batch {batch}" if len(batches) > 1 else ""
        line = ("-", "--", ":", "-.")[place % 4]
        for name, color, timings in (
            ("dense", _DENSE, [point.dense for point in points]),
            ("reduced", _REDUCED, [point.reduced for point in points]),
        ):
            pairs = zip(points, timings, strict=True)
            typical = [point.typical_ms(timing) for point, timing in pairs]
            slow = [timing.p95_ms for timing in timings]
            axes.fill_between(lengths, typical, slow, color=color, alpha=0.15, linewidth=0)
            axes.plot(lengths, typical, line, color=color, label=name + suffix, marker="o", ms=4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({point.length for point in bench.points}))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("tokens per row")
    middle = "mean" if any(point.left for point in bench.points) else "median"
    axes.set_ylabel(f"ms per call, {middle} to 95th percentile")
    axes.legend(frameon=False)
    return figure


def draw_time(bench: BackendBench) -> Figure:
    """Where the time of a call goes: graph by graph, and outside the graphs."""
    rows: list[tuple[str, ModelTiming]] = []
    for point in bench.points:
        label = f"{point.length} tokens" + (f" x {point.batch}" if point.batch > 1 else "")
        rows += [(f"{label}, dense", point.dense), ("reduced", point.reduced)]
    figure, axes = _figure(height=0.9 + 0.3 * len(rows))
    segments = sorted({name for _, timing in rows for name in timing.graph_ms} - {"dense"})
    colors = {"dense": _DENSE} | {
        name: _SEGMENTS[place % len(_SEGMENTS)] for place, name in enumerate(segments)
    }
    for place, (_, timing) in enumerate(rows):
        left = 0.0
        for name, spent in [*sorted(timing.graph_ms.items()), ("outside", timing.outside_ms)]:
            axes.barh(place, spent, left=left, color=colors.get(name, _OUTSIDE), height=0.72)
            left += spent
    for name, color in [*colors.items(), ("outside the graphs", _OUTSIDE)]:
        axes.barh(0, 0, color=color, label=name.replace("_", " "))
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("mean ms per call")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def draw_kept(texts: Sequence[KeptText], cuts: Sequence[float]) -> Figure:
    """How many tokens the texts have, and how many are left of those that go on behind each cut."""
    lengths = np.array([text.lengths for text in texts])  # [N, C+1]
    edges = np.histogram_bin_edges(lengths, bins=min(40, int(lengths.max())))
    figure, panels = _panels(len(cuts) + 1)
    leaving = any(text.exit is not None for text in texts)
    names = ["whole texts", *(f"behind the cut {cut_name(cut)}" for cut in cuts)]
    colors = [_DENSE, *(_SEGMENTS[place % len(_SEGMENTS)] for place in range(len(cuts)))]
    for axes, name, color, counts in zip(panels, names, colors, lengths.T, strict=True):
        there = counts[counts > 0]  # not those that left at an exit
        axes.hist(there, bins=edges.tolist(), color=color)
        told = f"{name}: median {np.median(there):g}" if len(there) else name
        axes.set_title(f"{told}, {len(there)} texts" if leaving else told, loc="left")
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    panels[-1].set_xlabel("tokens")
    figure.supylabel("texts")
    return figure


def fragments(text: KeptText) -> list[list[Fragment]]:
    """The characters of a text, or of each text of a pair, with the fate of their tokens.

    What the tokenizer leaves out, or truncation cut off, counts as gone at the first cut.
    """
    sources = [text.text] if isinstance(text.text, str) else list(text.text)
    return [
        _fragments(source, [token for token in text.tokens if token.part == part])
        for part, source in enumerate(sources)
    ]


def _fragments(source: str, tokens: Sequence[Piece]) -> list[Fragment]:
    bounds = [*(token.start for token in tokens), len(source)]
    parts = [Fragment(source[: bounds[0]], 0)]
    for token, stop in zip(tokens, bounds[1:], strict=True):
        end = stop if not source[token.stop : stop].strip() else token.stop
        parts.append(Fragment(source[token.start : end], token.passed))
        parts.append(Fragment(source[end:stop], 0))
    return [part for part in parts if part.text]


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    _clean(axes)
    return figure, axes


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH, 0.5 + 1.1 * count), layout="constrained")
    panels = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    for axes in panels:
        _clean(axes)
    return figure, panels


def _clean(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _svg(name: str, draw: Callable[..., Figure], *arguments: Any) -> Markup:
    """A figure as an SVG element; its name keeps its ids apart from those of others."""
    written = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9.0}
    with matplotlib.rc_context(settings):
        draw(*arguments).savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    return Markup(svg[svg.index("<svg") :])
