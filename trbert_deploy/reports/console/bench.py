"""A benchmark as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from trbert_deploy.bench.device_model import Reckoning
from trbert_deploy.bench.timing import BackendBench, BenchPoint, BenchReport, ModelTiming
from trbert_deploy.bench.tradeoff import DENSE, REDUCED, TradeoffPoint, TradeoffReport
from trbert_deploy.evaluation.quality import QualityReport
from trbert_deploy.evaluation.sweep import SweepPoint, SweepReport

#: Points side by side: what 80 columns hold.
_POINTS_PER_TABLE = 4


def print_report(report: BenchReport, console: Console) -> None:
    """Print the figures of every backend, and below them what they mean."""
    machine, bundle = report.machine, report.bundle
    cuts = ", ".join(f"{cut['position']:g}" for cut in bundle["cuts"]) or "none"
    console.print(f"{machine['processor']}, {machine['cores']} cores")
    console.print(
        f"{bundle['path']}: {bundle['family']}, {bundle['num_layers']} layers, "
        f"{bundle['hidden_size']} wide, cuts {cuts}"
    )
    for backend in report.backends:
        console.print(f"\n[bold]{backend.name}[/bold], {backend.settings}")
        for first in range(0, len(backend.points), _POINTS_PER_TABLE):
            console.print(_table(backend.points[first : first + _POINTS_PER_TABLE]))
        for line in dense_wins(backend):
            console.print(line)
    console.print(
        "\nTimed: rows of tokens to logits, with batching, selection and compaction,\nwithout "
        "tokenizing; both models in turns on the same real texts."
    )
    for note in report.notes:
        console.print(note)


def print_reckoning(reckoning: Reckoning, measured: BenchReport | None, console: Console) -> None:
    """Print what a device would take, and how far that is from what one took.

    Args:
        measured: of the same lengths and batches; what the backend ``cuda`` took is compared.
    """
    times = {
        (point.length, point.batch): point
        for backend in (measured.backends if measured is not None else ())
        if backend.description["backend"] == "cuda"
        for point in backend.points
    }
    table = Table(title=f"reckoned for {reckoning.device.name}, half precision: not measured")
    headings = ("tokens x texts", "dense ms", "reduced ms", "speed-up", "by FLOPs", "unrecorded ms")
    for heading in (*headings, *(("error",) if times else ())):
        table.add_column(heading, justify="right")
    for point in reckoning.points:
        found = times.get((point.length, point.batch))
        errors = []
        if found is not None:
            pairs = ((point.dense_ms, found.dense), (point.reduced_ms, found.reduced))
            errors = [
                ", ".join(f"{ours / found.typical_ms(theirs) - 1:+.0%}" for ours, theirs in pairs)
            ]
        table.add_row(
            f"{point.length} x {point.batch}",
            f"{point.dense_ms:.2f}",
            f"{point.reduced_ms:.2f}",
            f"{point.speedup:.2f}",
            f"{point.flops_speedup:.2f}",
            f"{point.launched_ms:.2f}",
            *errors,
        )
    console.print(table)
    console.print(RECKONING_NOTE, soft_wrap=True)


#: What a reader of a reckoning must know.
RECKONING_NOTE = (
    "A reckoning from operations, bytes and launches, fitted to an H100, of the time that the "
    "device is busy in the backend cuda; tokens that survive are those of real texts. unrecorded: "
    "the chain launched kernel by kernel. error: of dense and reduced, against what the backend "
    "took here."
)


def print_quality(report: QualityReport, console: Console) -> None:
    """Print the quality of both models, and what lies between them."""
    table = Table(
        title=f"{report.rows:,} texts, {report.tokens_per_row:.0f} tokens each, {report.backend}"
    )
    for heading in ("", "teacher" if report.teacher else "dense", "reduced"):
        table.add_column(heading, justify="right" if heading else "left")
    for cells in quality_rows(report):
        table.add_row(*cells)
    console.print(table)
    console.print(quality_change(report))


def quality_rows(report: QualityReport) -> Iterator[tuple[str, str, str]]:
    """The cells of each line of a table: what it is, of the dense model, of the chain."""
    for measure in report.dense.metrics:
        yield measure_row(measure, report.dense.metrics, report.reduced.metrics)
    yield "seconds", f"{report.dense.seconds:.1f}", f"{report.reduced.seconds:.1f}"
    yield "tokens kept", "all", _shares(report.kept_share) or "all"
    if report.left_share:
        yield "texts that left early", "", _shares(report.left_share)
    yield "FLOPs speed-up", "1", f"{report.flops_speedup:.2f}"
    yield "measured speed-up", "1", f"{report.measured_speedup:.2f}"


def measure_row(
    measure: str, dense: Mapping[str, float], reduced: Mapping[str, float]
) -> tuple[str, str, str]:
    """The cells of a line for one of two models' measures."""
    style = "{:.3f}" if measure.endswith(("error", "divergence")) else "{:.2%}"
    name = measure.replace("_", " ").replace(" f1", " F1")
    return name, style.format(dense[measure]), style.format(reduced[measure])


def quality_change(report: QualityReport) -> str:
    """What lies between the two models, in words."""
    low, high = report.interval
    return (
        f"{report.measure} changes by {report.score_change:+.2f} points "
        f"(95 % interval {low:+.2f} to {high:+.2f}); "
        f"{report.agreement:.1%} of the answers agree"
    )


def print_sweep(report: SweepReport, console: Console) -> None:
    """Print one line per operating point, by what it saves, the current one among them."""
    table = Table(
        title="by threshold, and confidence of exits" if report.pairs else "by threshold",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for heading in (
        "threshold",
        "tokens kept",
        "FLOPs",
        "measured",
        report.current.measure,
        "change",
    ):
        table.add_column(heading, justify="right")
    named = [(_told_pair(point), point.quality) for point in report.points]
    named.append(("current", report.current))
    for name, quality in sorted(named, key=lambda pair: pair[1].flops_speedup):
        low, high = quality.interval
        table.add_row(
            name,
            _shares(quality.kept_share) or "all",
            f"{quality.flops_speedup:.2f}x",
            f"{quality.measured_speedup:.2f}x",
            f"{quality.reduced.score:.2%}",
            f"{quality.score_change:+.2f} ({low:+.2f} to {high:+.2f})",
            style="bold" if quality is report.current else None,
        )
    console.print(table)


def _told_pair(point: SweepPoint) -> str:
    if point.exit_confidence is None:
        return f"{point.threshold:g}"
    return f"{point.threshold:g}, {point.exit_confidence:.3f}"


def print_tradeoff(report: TradeoffReport, console: Console) -> None:
    """Print one line per model and operating point, and below them what they mean."""
    table = Table(
        title=f"quality against latency: {report.rows:,} texts, {report.backend}",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for place, heading in enumerate(tradeoff_headings(report)):
        table.add_column(heading, justify="left" if place < 2 else "right")
    for cells, style in tradeoff_rows(report):
        table.add_row(*cells, style=style)
    console.print(table)
    console.print(TRADEOFF_NOTE, soft_wrap=True)
    for note in report.notes:
        console.print(note, soft_wrap=True)


#: What a reader of a trade-off must know.
TRADEOFF_NOTE = (
    "ms: mean of a text, one at a time, all models in turns, without tokenizing; time and FLOPs: "
    "how many times less than the dense model. The baselines have the same weights, were not "
    "trained for what they do, and are not charged for choosing."
)


def tradeoff_headings(report: TradeoffReport) -> tuple[str, ...]:
    """The headings of its table."""
    return ("model", "setting", "ms", "time", "FLOPs", report.measure, "change, points")


def tradeoff_rows(report: TradeoffReport) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """The cells and the style of each line of a table: dense model, chain, baselines."""
    chain = sorted([*report.of(REDUCED), report.current], key=lambda point: -point.latency_ms)
    others = [point for point in report.points if point.model != REDUCED]
    shown = ""
    for point in (report.dense, *chain, *others):
        name = "" if point.model == shown else point.model
        shown = point.model
        current = point is report.current
        setting = "current rules" if current else point.setting
        yield (name, setting, *_figures(point, report.dense)), "bold" if current else None


def _figures(point: TradeoffPoint, dense: TradeoffPoint) -> Iterator[str]:
    yield f"{point.latency_ms:.2f}"
    yield f"{dense.latency_ms / point.latency_ms:.2f}x"
    yield f"{point.flops_speedup:.2f}x"
    yield f"{point.score:.2%}"
    change, low, high = map(_points, (point.score_change, *point.interval))
    yield "" if point.model == DENSE else f"{change} ({low} to {high})"


def _points(change: float) -> str:
    """A change in points, with as many decimals as 80 columns hold."""
    return f"{change:+.2f}" if abs(change) < 10 else f"{change:+.1f}"


def _shares(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.1%}" for share in shares)


def dense_wins(backend: BackendBench) -> Iterator[str]:
    """A line in words for every point at which removing tokens does not pay."""
    for point in backend.points:
        if point.measured_speedup < 1.0:
            yield (
                f"The dense model is faster at {point.length} tokens, batch {point.batch}: "
                f"{point.typical_ms(point.dense):.2f} ms against "
                f"{point.typical_ms(point.reduced):.2f} ms."
            )


@dataclass(frozen=True)
class FigureRow:
    """One figure of every point.

    Attributes:
        group: what it belongs to, where it is the first of several.
        name: what it is.
        shown: the figure of each point, for people.
    """

    group: str
    name: str
    shown: tuple[str, ...]


def figures_of(points: Sequence[BenchPoint]) -> list[FigureRow]:
    """The rows of a table with one column per point."""
    rows: list[FigureRow] = []
    leaving = any(point.left for point in points)

    def row(group: str, name: str, figure: Callable[[BenchPoint], str]) -> None:
        rows.append(FigureRow(group, name, tuple(map(figure, points))))

    def speed(group: str, timing: Callable[[BenchPoint], ModelTiming]) -> None:
        row(group, "p50 ms", lambda point: f"{timing(point).p50_ms:.2f}")
        row("", "p95 ms", lambda point: f"{timing(point).p95_ms:.2f}")
        if leaving:  # what speed-ups are then told by
            row("", "mean ms", lambda point: f"{timing(point).mean_ms:.2f}")
        row("", "texts per s", lambda point: f"{timing(point).texts_per_s:.1f}")
        row("", "tokens per s", lambda point: f"{timing(point).tokens_per_s:.0f}")
        row("", "outside graphs", lambda point: f"{timing(point).outside_share:.1%}")

    speed("dense", lambda point: point.dense)
    speed("reduced", lambda point: point.reduced)
    row("", "tokens kept", _kept)
    if leaving:
        row("", "left early", lambda point: ", ".join(f"{share:.0%}" for share in point.left))
    row("speed-up", "by FLOPs", lambda point: f"{point.flops_speedup:.2f}")
    row("", "measured", lambda point: f"{point.measured_speedup:.2f}")
    row("", "measured / FLOPs", lambda point: f"{point.efficiency:.2f}")
    return rows


def _table(points: Sequence[BenchPoint]) -> Table:
    """One column per point."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("")
    for point in points:
        table.add_column(f"{point.length} tokens\nbatch {point.batch}", justify="right")
    for row in figures_of(points):
        table.add_row(row.group, row.name, *row.shown)
    return table


def _kept(point: BenchPoint) -> str:
    return ", ".join(f"{mean:.0f}" for mean in point.kept) or "all"
