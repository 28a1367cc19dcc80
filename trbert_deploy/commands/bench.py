"""The command ``trbert-deploy bench``."""

from __future__ import annotations

from pathlib import Path

import click

from trbert_deploy import console
from trbert_deploy.bench.device_model import DEVICES
from trbert_deploy.bounds import MOST_ROUNDS, MOST_TEXTS, MOST_TOKENS
from trbert_deploy.commands.numbers import Whole, Wholes
from trbert_deploy.commands.options import (
    BACKEND_HELP,
    backend_choice,
    bundle_argument,
    column_options,
    engines_option,
    json_option,
    needs,
    operating_point_options,
    png_file,
    precision_option,
    threads_option,
)
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.columns import ColumnNames


@click.command()
@bundle_argument
@click.option(
    "--lengths",
    type=Wholes(MOST_TOKENS),
    metavar="N,N",
    help="Tokens of a text [default: 512,2048]",
)
@click.option(
    "--batch",
    "batches",
    type=Wholes(MOST_TEXTS),
    metavar="N,N",
    default="1",
    show_default=True,
    help="Texts per call, such as 1,8.",
)
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
@click.option(
    "--rounds",
    type=Whole(1, MOST_ROUNDS),
    metavar="N",
    help="Measured repetitions [default: for 5 seconds]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Texts instead of the bundle's own; - for stdin.",
)
@column_options()
@click.option(
    "--device-model",
    type=click.Choice(list(DEVICES)),
    metavar="NAME",
    help=f"Reckon for {', '.join(DEVICES)}.",
)
@click.option(
    "--sweep",
    is_flag=True,
    help="Measure quality too, on the texts of --data.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=png_file,
    help="PNG file of the sweep [default: tradeoff.png]",
)
@click.option(
    "--html",
    "html_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page with tables, plots and texts.",
)
@json_option
@needs("export")
def bench(
    bundle: Path,
    lengths: tuple[int, ...] | None,
    batches: tuple[int, ...],
    backend: str | None,
    precision: str | None,
    engines: bool,
    threads: int,
    point: OperatingPoint,
    rounds: int | None,
    data: Path | None,
    columns: ColumnNames,
    device_model: str | None,
    sweep: bool,
    plot: Path | None,
    html_path: Path | None,
    json_path: Path | None,
) -> None:
    """Measure how much faster BUNDLE is than the same model with no token removed."""
    from trbert_deploy.bench.bundles import (
        BenchOptions,
        bench_bundle,
        read_data,
        reckon_bundle,
        sweep_bundle,
        trace_bundle,
    )
    from trbert_deploy.bench.timing import Rounds
    from trbert_deploy.files import write_json
    from trbert_deploy.reports.console.bench import (
        print_reckoning,
        print_report,
        print_tradeoff,
    )

    if plot is not None and not sweep:
        raise click.UsageError("--plot draws a sweep: add --sweep")
    if sweep:  # a missing package is told now, and not after measuring
        from trbert_deploy.reports.plots.sweeps import write_tradeoff_plot
    if html_path is not None:
        from trbert_deploy.reports.html import write_html
    effort = Rounds() if rounds is None else Rounds.exactly(rounds)
    examples = None
    if data is not None:
        examples = read_data(bundle, data, columns, console.notes.print, labelled=sweep)
    options = BenchOptions(
        lengths, batches, backend, precision, threads, point, effort, examples, engines
    )
    if device_model is not None and backend is None:
        if sweep or html_path is not None:
            raise click.UsageError(
                "--device-model reckons and times nothing: for --sweep and --html name a --backend"
            )
        with console.progress() as progress:
            reckoned = reckon_bundle(bundle, device_model, options, progress)
        print_reckoning(reckoned, None, console.out)
        if json_path is not None:
            write_json(json_path, {"reckoned": reckoned.to_json()})
        return
    with console.progress() as progress:
        swept = sweep_bundle(bundle, options, progress) if sweep else None
        report = bench_bundle(bundle, options, progress)
        texts = [] if html_path is None else trace_bundle(bundle, options, progress)
    print_report(report, console.out)
    figures = report.to_json()
    if device_model is not None:
        with console.progress(transient=True) as progress:
            reckoned = reckon_bundle(bundle, device_model, options, progress)
        print_reckoning(reckoned, report, console.out)
        figures["reckoned"] = reckoned.to_json()
    if swept is not None:
        figures["sweep"] = swept.to_json()
        print_tradeoff(swept, console.out)
        plot = plot or Path("tradeoff.png")
        write_tradeoff_plot(swept, plot)
        console.out.print(f"plot: {plot}", soft_wrap=True)
    if html_path is not None:
        with console.progress(transient=True) as progress:
            progress(f"write {html_path.name}", 0, None)
            write_html(report, texts, html_path, swept)
        console.out.print(f"page: {html_path}", soft_wrap=True)
    if json_path is not None:
        write_json(json_path, figures)
