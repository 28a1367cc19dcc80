"""The command ``trbert-deploy evaluate``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from trbert_deploy import console
from trbert_deploy.commands.options import (
    BACKEND_HELP,
    backend_choice,
    column_options,
    engines_option,
    json_option,
    lexicon_option,
    needs,
    operating_point_options,
    png_file,
    precision_option,
    task_option,
    threads_option,
)
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.columns import ColumnNames


@click.command()
@click.argument(
    "model",
    metavar="[BUNDLE or CHECKPOINT]",
    type=click.Path(path_type=Path),
    default=Path("bundle"),
    required=False,
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    required=True,
    metavar="FILE",
    help="Texts, labelled or not; - for stdin.",
)
@column_options()
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    help="Compare with this model [default: its own dense]",
)
@task_option
@click.option(
    "--backend",
    type=backend_choice,
    metavar="NAME",
    help=BACKEND_HELP,
)
@precision_option
@engines_option
@threads_option
@operating_point_options
@lexicon_option
@click.option("--sweep", is_flag=True, help="Evaluate along the thresholds too, with a plot.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=png_file,
    help="PNG file of the sweep [default: sweep.png]",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Exit code 3 if quality falls by more.",
)
@json_option
@needs("export")
def evaluate(
    model: Path,
    data: Path,
    columns: ColumnNames,
    teacher: Path | None,
    task: str | None,
    backend: str | None,
    precision: str | None,
    engines: bool,
    threads: int,
    point: OperatingPoint,
    lexicon: Path | None,
    sweep: bool,
    plot: Path | None,
    max_drop: float | None,
    json_path: Path | None,
) -> None:
    """Compare a model with its dense model, or its teacher.

    Labels judge where all texts have one, and the other model's answers otherwise.
    """
    from trbert_deploy.evaluation.models import open_models
    from trbert_deploy.evaluation.quality import evaluate_quality, warn_of_few_rows
    from trbert_deploy.files import write_json
    from trbert_deploy.progress import told
    from trbert_deploy.reports.console.bench import print_quality, print_sweep
    from trbert_deploy.runtime.reading.examples import read_examples

    if plot is not None and not sweep:
        raise click.UsageError("--plot draws a sweep: add --sweep")
    if sweep:
        from trbert_deploy.evaluation.sweep import sweep_thresholds
        from trbert_deploy.reports.plots.sweeps import write_sweep_plot
    with console.progress(transient=True) as progress:
        pipeline, dense = open_models(
            model,
            teacher,
            backend,
            threads=threads,
            precision=precision,
            engines=engines,
            task=task,
            point=point,
            note=console.notes.print,
            progress=progress,
        )
        if lexicon is not None:
            pipeline = pipeline.with_lexicon_file(lexicon)
        examples = read_examples(data, pipeline.task, columns, console.notes.print)
        texts = list(told(f"read {data.name}", examples, progress))
    with console.progress() as progress:
        if sweep:
            swept = sweep_thresholds(pipeline, texts, teacher=dense, progress=progress)
            report, figures = swept.current, swept.to_json()
        else:
            report = evaluate_quality(pipeline, texts, teacher=dense, progress=progress)
            figures = report.to_json()
    print_quality(report, console.out)
    if sweep:
        print_sweep(swept, console.out)
        plot = plot or Path("sweep.png")
        write_sweep_plot(swept, plot)
        console.out.print(f"plot: {plot}", soft_wrap=True)
    if json_path is not None:
        write_json(json_path, figures)
    if max_drop:
        warn_of_few_rows(report, max_drop)
    if max_drop is not None and -report.score_change > max_drop:
        console.notes.print(
            f"{report.measure} falls by {-report.score_change:.2f} points, more than {max_drop:g}"
        )
        sys.exit(3)
