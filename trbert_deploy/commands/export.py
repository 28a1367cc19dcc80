"""The command ``trbert-deploy export``."""

from __future__ import annotations

from pathlib import Path

import click

from trbert_deploy import console
from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.commands.numbers import Whole
from trbert_deploy.commands.options import (
    exit_confidence_option,
    json_option,
    needs,
    round_to_option,
    task_option,
    threshold_option,
)
from trbert_deploy.tasks.pairs import TRUNCATIONS


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("bundle"),
    show_default=True,
    help="Bundle to make, or to replace.",
)
@click.option(
    "--samples/--no-samples", default=True, help="Put sample texts for bench in (default)."
)
@task_option
@threshold_option
@round_to_option
@exit_confidence_option
@click.option(
    "--truncation",
    type=click.Choice(TRUNCATIONS),
    metavar="NAME",
    help=f"{', '.join(TRUNCATIONS)}: what of a pair is cut.",
)
@click.option(
    "--int8",
    is_flag=True,
    help="Add 8-bit weights, if they answer as float32.",
)
@click.option("--force-int8", is_flag=True, help="Add 8-bit weights whatever they answer.")
@click.option("--fp16", is_flag=True, help="Add half precision, for GPUs.")
@click.option("--fused", is_flag=True, help="Add the whole chain as one graph.")
@click.option(
    "--states-after",
    type=Whole(0, MOST_TOKENS),
    metavar="K",
    multiple=True,
    help="Add states after layer K, for align; repeatable.",
)
@json_option
@needs("export")
def export(
    checkpoint: Path,
    output: Path,
    samples: bool,
    task: str | None,
    threshold: float | None,
    round_to: int | None,
    exit_confidence: float | None,
    truncation: str | None,
    int8: bool,
    force_int8: bool,
    fp16: bool,
    fused: bool,
    states_after: tuple[int, ...],
    json_path: Path | None,
) -> None:
    """Export CHECKPOINT as a bundle of ONNX graphs, checked against PyTorch."""
    from trbert_deploy.exporters.checks.limits import LIMITS, NO_LIMITS
    from trbert_deploy.exporters.export import export_bundle
    from trbert_deploy.files import write_json
    from trbert_deploy.reports.console.export import print_export

    with console.progress() as progress:
        report = export_bundle(
            checkpoint,
            output,
            samples=samples,
            task=task,
            threshold=threshold,
            round_to=round_to,
            exit_confidence=exit_confidence,
            truncation=truncation,
            int8=int8 or force_int8,
            fp16=fp16,
            fused=fused,
            states_after=states_after,
            int8_limits=NO_LIMITS if force_int8 else LIMITS["int8"],
            progress=progress,
        )
    print_export(report, console.out)
    if json_path is not None:
        write_json(json_path, report.to_json())
