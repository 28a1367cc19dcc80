"""The command ``trbert-deploy triton-repo``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from trbert_deploy import console
from trbert_deploy.bounds import MOST_TEXTS
from trbert_deploy.commands.numbers import Whole
from trbert_deploy.commands.options import (
    backend_option,
    precision_option,
    threads_option,
    threshold_option,
    truncate_option,
)
from trbert_deploy.serving.triton.settings import MOST_DELAY_US, MOST_INSTANCES, Loading, Settings


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Of the model [default: of the bundle's folder]")
@backend_option
@precision_option
@threads_option
@threshold_option
@truncate_option
@click.option(
    "--instances",
    type=Whole(1, MOST_INSTANCES),
    metavar="N",
    default=Settings.instances,
    show_default=True,
    help="Of the model, on each device.",
)
@click.option(
    "--max-batch-size",
    type=Whole(1, MOST_TEXTS),
    metavar="N",
    default=Settings.max_batch_size,
    show_default=True,
    help="Texts that run together.",
)
@click.option(
    "--queue-delay",
    type=Whole(0, MOST_DELAY_US),
    metavar="N",
    default=Settings.queue_delay_us,
    show_default=True,
    help="Microseconds to wait for others.",
)
@click.option("--fused", is_flag=True, help="Serve export --fused's graph: tokens, no Python.")
def triton_repo(
    bundle: Path,
    out: Path,
    name: str | None,
    backend: str,
    precision: str | None,
    threads: int,
    threshold: float | None,
    truncate: bool,
    instances: int,
    max_batch_size: int,
    queue_delay: int,
    fused: bool,
) -> None:
    """Write OUT, a model repository in which Triton serves BUNDLE (docs/serving.md)."""
    from trbert_deploy.serving.triton.repository import write_repository

    loading = Loading(backend, precision, threads, threshold, truncate)
    if fused and loading != Loading():
        raise click.UsageError(
            "--fused serves the graph as it was exported: leave out --backend, --precision, "
            "--threads, --threshold and --no-truncate"
        )
    settings = Settings(loading, instances, max_batch_size, queue_delay)
    written = write_repository(bundle, out, name, settings, fused=fused)
    started = f"tritonserver --model-repository {shlex.quote(str(out))}"
    console.out.print(f"{written}: {started}", soft_wrap=True, markup=False)
