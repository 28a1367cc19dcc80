"""The command ``trbert-deploy quickstart``."""

from __future__ import annotations

from pathlib import Path

import click

from trbert_deploy import console
from trbert_deploy.commands.options import needs


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("quickstart"),
    show_default=True,
    help="Directory of the example.",
)
@click.option("--fresh", is_flag=True, help="Start over instead of going on where it was.")
@needs("cpu,train,export,tensorrt-rtx,demo")
def quickstart(output: Path, fresh: bool) -> None:
    """Run the main job on an embedded example: train, export, build engines, measure."""
    from trbert_deploy.demo.quickstart import QuickstartOptions, run_quickstart, start_over
    from trbert_deploy.reports.console.quickstart import print_summary

    if fresh:
        start_over(output)
    summary = run_quickstart(QuickstartOptions(), output, console.progress, console.notes.print)
    print_summary(summary, output, console.out)
