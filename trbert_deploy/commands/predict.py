"""The command ``trbert-deploy predict``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from trbert_deploy import console
from trbert_deploy.commands.options import (
    AUTO_HELP,
    DATA_HELP,
    backend_choice,
    bundle_argument,
    column_options,
    engines_option,
    needs,
    operating_point_options,
    precision_option,
    threads_option,
)
from trbert_deploy.runtime.backends.registry import DEFAULT_BACKEND
from trbert_deploy.runtime.chain import MAX_BATCH_TOKENS
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.columns import ColumnNames


@click.command()
@bundle_argument
@click.option("--text", "texts", multiple=True, help="A text; may be given several times.")
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help=f"Texts: {DATA_HELP}",
)
@column_options(label=False)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file, whole or not at all, instead of stdout.",
)
@click.option(
    "--backend", type=backend_choice, default=DEFAULT_BACKEND, show_default=True, help=AUTO_HELP
)
@precision_option
@engines_option
@threads_option
@operating_point_options
@click.option("--dense", is_flag=True, help="Remove no token.")
@click.option("--kept", is_flag=True, help="Report the tokens that survived each cut.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Texts per call.",
)
@click.option(
    "--max-batch-tokens",
    type=click.IntRange(min=1),
    default=MAX_BATCH_TOKENS,
    show_default=True,
    help="Tokens on their way at a time, which bounds the memory.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    help="Most tokens of a text [default: what the bundle takes].",
)
@click.option(
    "--truncate/--no-truncate", default=True, help="Cut longer texts (the default), or refuse them."
)
@needs("export")
def predict(
    bundle: Path,
    texts: tuple[str, ...],
    source: Path | None,
    columns: ColumnNames,
    output: Path | None,
    backend: str,
    precision: str | None,
    engines: bool,
    threads: int,
    point: OperatingPoint,
    dense: bool,
    kept: bool,
    batch_size: int,
    max_batch_tokens: int,
    max_length: int | None,
    truncate: bool,
) -> None:
    """Classify texts with BUNDLE: one JSON object a line, in the order of the texts."""
    from trbert_deploy.files import staged_file
    from trbert_deploy.runtime.pipeline import load
    from trbert_deploy.runtime.predicting import name_texts, predict_lines
    from trbert_deploy.runtime.reading.examples import count_examples, read_examples

    if bool(texts) == (source is not None):
        raise click.UsageError("give texts either with --text or with --input FILE")
    pipeline = load(
        bundle,
        backend,
        threads=threads,
        precision=precision,
        engines=engines,
        truncate=truncate,
        max_length=max_length,
        max_batch_tokens=max_batch_tokens,
        note=console.notes.print,
        **asdict(point),
    )
    if source is None:
        examples = name_texts(texts)
    else:
        examples = read_examples(
            source, pipeline.task, columns, console.notes.print, with_targets=False
        )
    lines = predict_lines(pipeline, examples, batch_size=batch_size, return_kept=kept, dense=dense)
    if output is None:
        console.write_lines(lines)
    else:
        total = len(texts) if source is None else count_examples(source, columns)
        with (
            staged_file(output) as staging,
            staging.open("w", encoding="utf-8") as file,
            console.progress() as progress,
        ):
            for done, line in enumerate(lines, start=1):
                file.write(line + "\n")
                progress("predict", done, total)
    tokenizer = pipeline.tokenizer
    if tokenizer.truncated:
        console.notes.print(
            f"{tokenizer.truncated} of {tokenizer.encoded} texts were cut to "
            f"{tokenizer.max_length} tokens"
        )
