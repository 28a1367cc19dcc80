"""The command ``trbert-deploy compress``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from trbert_deploy import console
from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.commands.numbers import Whole
from trbert_deploy.commands.options import column_options, json_option, needs, task_option
from trbert_deploy.tasks.columns import ColumnNames


@click.command()
@click.argument("model")
@click.option("--texts", required=True, metavar="FILE", help="Texts, labelled or not; - for stdin.")
@column_options()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bundle"),
    show_default=True,
    help="Bundle to make; replaced at the end.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("compress"),
    show_default=True,
    help="What lies between.",
)
@task_option
@click.option(
    "--target-speedup",
    type=float,
    metavar="FACTOR",
    default=3.0,
    show_default=True,
    help="Times fewer FLOPs to aim at.",
)
@click.option(
    "--min-agreement",
    type=float,
    metavar="PERCENT",
    help="Least share of answers that stay as they are.",
)
@click.option(
    "--max-drop", type=float, metavar="POINTS", help="Instead: most accuracy to lose, by labels."
)
@click.option(
    "--max-length",
    type=Whole(2, MOST_TOKENS),
    metavar="N",
    help="Most tokens of a text [default: the model's]",
)
@click.option(
    "--recipe",
    metavar="RECIPE",
    help="exits, gates, tr-bert or a file [default: exits]",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="Page with figures and texts.",
)
@json_option
@needs("cpu,train,export,plots")
def compress(
    model: str,
    texts: str,
    output: Path,
    work: Path,
    task: str | None,
    target_speedup: float,
    min_agreement: float | None,
    max_drop: float | None,
    max_length: int | None,
    recipe: str | None,
    columns: ColumnNames,
    html: Path,
    json_path: Path | None,
) -> None:
    """Make a fine-tuned MODEL faster, from texts alone: train, export, evaluate, bench.

    An interrupted run goes on when the same command is given again. Exit code 3: what
    --min-agreement or --max-drop asks for is missed, and OUTPUT stays as it was.
    """
    from trbert_deploy.bench.timing import BenchReport
    from trbert_deploy.compress.options import CompressOptions
    from trbert_deploy.compress.run import compress as run_compress
    from trbert_deploy.evaluation.kept import KeptText
    from trbert_deploy.evaluation.quality import QualityReport
    from trbert_deploy.files import write_json
    from trbert_deploy.reports.console.compress import print_compress
    from trbert_deploy.reports.html import write_html

    options = CompressOptions(
        model, texts, target_speedup, min_agreement, max_drop, max_length, recipe, columns, task
    )

    def write_page(
        bench: BenchReport,
        kept: list[KeptText],
        quality: QualityReport,
        to_the_end: QualityReport | None,
    ) -> None:
        write_html(bench, kept, html, quality=quality, to_the_end=to_the_end)

    summary = run_compress(options, output, work, console.progress, console.notes.print, write_page)
    print_compress(summary, console.out)
    if "quality" in summary:
        console.out.print(f"page: {html}", soft_wrap=True)
    if json_path is not None:
        write_json(json_path, summary)
    if summary["missed"] is not None:
        sys.exit(3)
