"""The command ``trbert-deploy serve``."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import click

from trbert_deploy import console
from trbert_deploy.bounds import MOST_TEXTS, MOST_TOKENS
from trbert_deploy.commands.numbers import Whole
from trbert_deploy.commands.options import (
    backend_option,
    engines_option,
    max_batch_tokens_option,
    needs,
    operating_point_options,
    precision_option,
    threads_option,
    truncate_option,
)
from trbert_deploy.errors import ConfigError
from trbert_deploy.selection.operating_point import OperatingPoint

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHED_QUALITY = "quality"
KEY_VARIABLE = "TRBERT_DEPLOY_API_KEY"
MOST_PORT = 65535
MOST_SECONDS = 86400
#: How long an idle connection stays open: longer than proxies and load balancers keep theirs
#: (60 s), which would else send a request into one that has just been closed.
KEEP_ALIVE_SECONDS = 75


@click.command()
@click.argument("bundles", nargs=-1, metavar="[[NAME=]BUNDLE]...")
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
@click.option(
    "--thresholds",
    type=float,
    nargs=2,
    metavar="LOW HIGH",
    help="Thresholds a request may choose.",
)
@click.option(
    "--shed",
    type=click.Choice([SHED_QUALITY]),
    metavar="quality",
    help="Drop more as requests wait.",
)
@click.option(
    "--min-agreement",
    type=float,
    metavar="PERCENT",
    default=97,
    show_default=True,
    help="Least that answers agree then.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help=f"Key of requests; else in ${KEY_VARIABLE}.",
)
@click.option("--watch", is_flag=True, help="Take over bundles as they are replaced.")
@click.option("--json-logs", is_flag=True, help="Log lines of JSON.")
@needs("serve")
def serve(
    bundles: tuple[str, ...],
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
    thresholds: tuple[float, float] | None,
    shed: str | None,
    min_agreement: float,
    api_key_file: Path | None,
    watch: bool,
    json_logs: bool,
) -> None:
    """Answer texts with BUNDLEs over HTTP, as services that clients know do (docs/serving.md)."""
    import uvicorn

    from trbert_deploy.runtime.loading import load
    from trbert_deploy.runtime.pipeline import Pipeline
    from trbert_deploy.serving import logs, traces
    from trbert_deploy.serving.app import create_app
    from trbert_deploy.serving.served import Limits, ServedModel, ServedModels

    if thresholds is not None and not 0 <= thresholds[0] <= thresholds[1] <= 1:
        given = " ".join(map(str, thresholds))
        raise ConfigError(f"--thresholds is {given}: expected two from 0 to 1, the lower one first")
    if not 1 < min_agreement <= 100:
        raise ConfigError(
            f"--min-agreement is {min_agreement:g}: expected a percentage, such as 97"
        )
    logs.set_up(json_logs)
    traces.set_up()
    key = _key(api_key_file)
    if key is None and host not in LOOPBACK:
        console.notes.print(f"anyone who reaches {host} may ask: --api-key-file sets a key")
    limits = Limits(
        texts=max_texts,
        waiting_tokens=max_waiting_tokens,
        timeout_s=timeout,
        thresholds=thresholds,
        min_agreement=min_agreement / 100 if shed == SHED_QUALITY else None,
    )

    def opened(path: Path) -> Pipeline:
        with console.progress() as progress:
            return load(
                path,
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

    def served(name: str | None, path: Path) -> ServedModel:
        pipeline = opened(path)
        with console.progress(transient=True) as progress:
            return ServedModel(pipeline, limits, name, console.notes.print, progress)

    models = [served(*_named(bundle)) for bundle in bundles or ("bundle",)]
    app = create_app(ServedModels(models), key, opened, watch)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, grace),
    )


def _named(bundle: str) -> tuple[str | None, Path]:
    """The name of a model, where one is given, and its bundle."""
    name, equals, path = bundle.partition("=")
    if not equals or Path(bundle).exists():
        return None, Path(bundle)
    if not name:
        raise ConfigError(f"{bundle!r} has no name: expected NAME=BUNDLE, or BUNDLE")
    return name, Path(path)


def _key(file: Path | None) -> str | None:
    """The key in a file, or else in the environment.

    Raises:
        ConfigError: it is empty, or more than one line of printable ASCII.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    key = file.read_bytes().decode("ascii", "replace").strip()
    if not (key and key.isascii() and key.isprintable()):
        raise ConfigError(f"{file} holds no key: expected one line of printable ASCII characters")
    return key
