"""The command ``trbert-deploy serve``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from trbert_deploy import console
from trbert_deploy.bounds import MOST_TEXTS, MOST_TOKENS
from trbert_deploy.commands.numbers import Whole
from trbert_deploy.commands.options import (
    backend_option,
    bundle_argument,
    engines_option,
    max_batch_tokens_option,
    needs,
    operating_point_options,
    precision_option,
    threads_option,
    truncate_option,
)
from trbert_deploy.selection.operating_point import OperatingPoint

MOST_PORT = 65535
MOST_SECONDS = 86400


@click.command()
@bundle_argument
@click.option(
    "--host",
    metavar="IP",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at.",
)
@click.option(
    "--port",
    type=Whole(0, MOST_PORT),
    metavar="N",
    default=8080,
    show_default=True,
    help="Port to listen at; 0 for any.",
)
@backend_option
@precision_option
@engines_option
@threads_option
@operating_point_options
@truncate_option
@max_batch_tokens_option
@click.option(
    "--max-texts",
    type=Whole(1, MOST_TEXTS),
    metavar="N",
    default=1024,
    show_default=True,
    help="Texts of one request.",
)
@click.option(
    "--max-waiting-tokens",
    type=Whole(1, MOST_TOKENS),
    metavar="N",
    default=1 << 18,
    show_default=True,
    help="Tokens that may wait.",
)
@click.option(
    "--timeout",
    type=Whole(1, MOST_SECONDS),
    metavar="S",
    default=30,
    show_default=True,
    help="Seconds a request may wait.",
)
@click.option(
    "--grace",
    type=Whole(0, MOST_SECONDS),
    metavar="S",
    default=30,
    show_default=True,
    help="Seconds to end in.",
)
@needs("serve")
def serve(
    bundle: Path,
    host: str,
    port: int,
    backend: str,
    precision: str | None,
    engines: bool,
    threads: int,
    point: OperatingPoint,
    truncate: bool,
    max_batch_tokens: int,
    max_texts: int,
    max_waiting_tokens: int,
    timeout: int,
    grace: int,
) -> None:
    """Answer texts with BUNDLE over HTTP, as text-embeddings-inference does (docs/serving.md)."""
    import uvicorn

    from trbert_deploy.runtime.loading import load
    from trbert_deploy.serving.app import create_app
    from trbert_deploy.serving.served import Limits, ServedModel

    with console.progress() as progress:
        pipeline = load(
            bundle,
            backend,
            threads=threads,
            precision=precision,
            truncate=truncate,
            max_batch_tokens=max_batch_tokens,
            engines=engines,
            note=console.notes.print,
            progress=progress,
            **asdict(point),
        )
    limits = Limits(texts=max_texts, waiting_tokens=max_waiting_tokens, timeout_s=timeout)
    app = create_app(ServedModel(pipeline, limits), grace)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="info",
        access_log=False,
        timeout_graceful_shutdown=max(1, grace),
    )
