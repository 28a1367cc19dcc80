"""The command ``trbert-deploy predict``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from trbert_deploy import console
from trbert_deploy.bounds import MOST_TEXTS, MOST_TOKENS
from trbert_deploy.commands.answer_lines import note_truncated, write_answers
from trbert_deploy.commands.numbers import Whole
from trbert_deploy.commands.options import (
    backend_option,
    bundle_argument,
    column_options,
    engines_option,
    lexicon_option,
    max_batch_tokens_option,
    needs,
    operating_point_options,
    precision_option,
    threads_option,
    truncate_option,
)
from trbert_deploy.commands.predict_files import predict_on_ray
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.columns import ColumnNames
from trbert_deploy.tasks.entities import AGGREGATIONS
from trbert_deploy.tasks.question_answering import MOST_ANSWER_TOKENS, MOST_ANSWERS

#: Where texts are answered: in this process, or by the workers of a cluster.
ENGINES = ("local", "ray")
MOST_WORKERS = 65536


@click.command()
@bundle_argument
@click.option("--text", "texts", multiple=True, help="A text; may be given several times.")
@click.option(
    "--input",
    "source",
    metavar="FILE",
    help="Texts in a file; - for stdin.",
)
@column_options(label=False)
@click.option(
    "--output",
    metavar="FILE",
    help="Write to this file instead.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    metavar="NAME",
    default=ENGINES[0],
    show_default=True,
    help="local; or ray, for folders.",
)
@click.option(
    "--workers",
    type=Whole(1, MOST_WORKERS),
    metavar="N",
    help="Workers of ray [default: by CPUs]",
)
@backend_option
@precision_option
@engines_option
@threads_option
@operating_point_options
@lexicon_option
@click.option("--dense", is_flag=True, help="Remove no token.")
@click.option("--kept", is_flag=True, help="Tell which tokens each cut kept.")
@click.option(
    "--batch-size",
    type=Whole(1, MOST_TEXTS),
    metavar="N",
    default=32,
    show_default=True,
    help="Texts per call.",
)
@max_batch_tokens_option
@click.option(
    "--max-length",
    type=Whole(1, MOST_TOKENS),
    metavar="N",
    help="Most tokens of a text [default: the bundle's]",
)
@truncate_option
@click.option(
    "--dimensions", type=Whole(1, MOST_TOKENS), metavar="N", help="Values of an embedding to keep."
)
@click.option("--prompt", metavar="NAME", help="The embedding model's prompt for these texts.")
@click.option(
    "--aggregation-strategy",
    type=click.Choice(AGGREGATIONS),
    metavar="NAME",
    help="How tokens become entities.",
)
@click.option("--top-k", type=Whole(1, MOST_ANSWERS), metavar="N", help="Answers to a question.")
@click.option(
    "--max-answer-len",
    type=Whole(1, MOST_ANSWER_TOKENS),
    metavar="N",
    help="Most tokens of an answer to a question.",
)
@click.option(
    "--no-answer/--answer",
    "handle_impossible_answer",
    default=None,
    help="Let a question have no answer, or not.",
)
@needs("export")
def predict(
    bundle: Path,
    texts: tuple[str, ...],
    source: str | None,
    columns: ColumnNames,
    output: str | None,
    engine: str,
    workers: int | None,
    backend: str,
    precision: str | None,
    engines: bool,
    threads: int,
    point: OperatingPoint,
    lexicon: Path | None,
    dense: bool,
    kept: bool,
    batch_size: int,
    max_batch_tokens: int,
    max_length: int | None,
    truncate: bool,
    dimensions: int | None,
    prompt: str | None,
    aggregation_strategy: str | None,
    top_k: int | None,
    max_answer_len: int | None,
    handle_impossible_answer: bool | None,
) -> None:
    """Answer texts with BUNDLE: one JSON object a line, in the order of the texts."""
    options = {
        "backend": backend,
        "precision": precision,
        "engines": engines,
        "truncate": truncate,
        "max_length": max_length,
        "dimensions": dimensions,
        "prompt": prompt,
        "aggregation_strategy": aggregation_strategy,
        "top_k": top_k,
        "max_answer_len": max_answer_len,
        "handle_impossible_answer": handle_impossible_answer,
        **asdict(point),
    }
    if engine == "ray":
        if lexicon is not None:
            raise click.UsageError(
                "--lexicon is for --engine local: put it into the bundle, with lexicon set"
            )
        predict_on_ray(
            bundle,
            source,
            output,
            columns,
            point,
            options,
            has_texts=bool(texts),
            workers=workers,
            threads=threads,
            kept=kept,
            dense=dense,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
        )
        return
    if workers is not None:
        raise click.UsageError("--workers is for --engine ray")
    _predict(
        bundle,
        texts,
        _file("source", source),
        columns,
        _file("output", output),
        lexicon,
        options,
        threads=threads,
        kept=kept,
        dense=dense,
        batch_size=batch_size,
        max_batch_tokens=max_batch_tokens,
    )


def _file(name: str, value: str | None) -> Path | None:
    """What an option names on this machine: a file, and no directory."""
    context = click.get_current_context()
    (option,) = (each for each in context.command.params if each.name == name)
    kind = click.Path(path_type=Path, dir_okay=False, allow_dash=name == "source")
    return None if value is None else kind.convert(value, option, context)


def _predict(
    bundle: Path,
    texts: tuple[str, ...],
    source: Path | None,
    columns: ColumnNames,
    output: Path | None,
    lexicon: Path | None,
    options: Mapping[str, Any],
    *,
    threads: int,
    kept: bool,
    dense: bool,
    batch_size: int,
    max_batch_tokens: int,
) -> None:
    """Answer texts in this process."""
    from trbert_deploy.runtime.loading import load
    from trbert_deploy.runtime.predicting import name_texts, predict_lines
    from trbert_deploy.runtime.reading.examples import count_examples, read_examples
    from trbert_deploy.runtime.reading.sources import STDIN

    if bool(texts) == (source is not None):
        raise click.UsageError("give texts either with --text or with --input FILE")
    with console.progress(transient=True) as progress:
        pipeline = load(
            bundle,
            threads=threads,
            max_batch_tokens=max_batch_tokens,
            note=console.notes.print,
            progress=progress,
            **options,
        )
    if lexicon is not None:
        pipeline = pipeline.with_lexicon_file(lexicon)
    if source is None:
        examples = name_texts(texts)
    else:
        examples = read_examples(
            source, pipeline.task, columns, console.notes.print, with_targets=False, whole=True
        )
    lines = predict_lines(pipeline, examples, batch_size=batch_size, return_kept=kept, dense=dense)
    total = partial(len, texts) if source is None else partial(count_examples, source, columns)
    write_answers(lines, output, "predict", total, waits=source == STDIN)
    note_truncated(pipeline.tokenizer)
