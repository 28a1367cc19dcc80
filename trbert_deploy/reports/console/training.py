"""The table at the end of training."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from trbert_deploy.tasks.task import AGREEMENT
from trbert_deploy.training.run import TrainReport


def print_training(report: TrainReport, console: Console) -> None:
    """Print what each stage came to on the validation rows, and what to do next."""
    title = f"{report.measure} on the validation texts after each stage"
    if report.measure == AGREEMENT:
        title = "agreement with the teacher, without labels, after each stage"
    table = Table(title=title)
    for heading in ("stage", "dense", "reduced", "divergence", "kept per cut", "FLOPs speed-up"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage, evaluation in report.stages.items():
        trained = stage != "teacher"  # before it the policies have learned nothing
        table.add_row(
            stage,
            f"{evaluation.dense_score:.2%}",
            f"{evaluation.score:.2%}" if trained else "-",
            "-" if evaluation.divergence is None else f"{evaluation.divergence:.3f}",
            " / ".join(f"{share:.1%}" for share in evaluation.kept) if trained else "-",
            f"{evaluation.flops_speedup:.2f}x" if trained else "-",
        )
    console.print(table)
    if report.points:
        console.print(_operating_points(report))
    console.print(
        f"checkpoint: {report.checkpoint}   next: trbert-deploy export {report.checkpoint}"
    )


def _operating_points(report: TrainReport) -> Table:
    """Quality against FLOPs over the threshold."""
    table = Table(title="the newest checkpoint at other thresholds (--threshold of evaluate)")
    has_exits = any(point.left for point in report.points)
    for heading in (
        "threshold",
        *(("texts that leave",) if has_exits else ()),
        "FLOPs speed-up",
        "kept per cut",
        report.measure,
        "under the teacher",
    ):
        table.add_column(heading, justify="right")
    for point in report.points:
        drop = 100.0 * ((report.teacher_score or 0.0) - point.score)
        table.add_row(
            f"{point.threshold:.3f}",
            *((" / ".join(f"{share:.0%}" for share in point.left),) if has_exits else ()),
            f"{point.flops_speedup:.2f}x",
            " / ".join(f"{share:.1%}" for share in point.kept),
            f"{point.score:.2%}",
            f"{drop:+.2f} points",
        )
    return table
