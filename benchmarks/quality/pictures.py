"""Draws what a trained policy keeps: by length of the text, by word, and in a few texts.

    python benchmarks/quality/pictures.py BUNDLE_OR_CHECKPOINT --data FILE --output DIR

Writes kept_by_length.png, words.png and texts.png. Needs trbert-deploy[plots].
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import click
import numpy as np

from trbert_deploy import console
from trbert_deploy.errors import TrbertError
from trbert_deploy.evaluation.kept import examples, kept_by_length, trace_texts, word_shares
from trbert_deploy.evaluation.models import open_models
from trbert_deploy.reports.plots.figure import write_figure
from trbert_deploy.reports.plots.kept import (
    draw_kept_by_length,
    draw_texts,
    draw_words,
)
from trbert_deploy.runtime.reading.examples import read_examples


@click.command()
@click.argument("model", type=click.Path(path_type=Path), metavar="BUNDLE_OR_CHECKPOINT")
@click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help='JSON lines with "text" and optionally "label" (.gz too).',
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Directory of the pictures.",
)
@click.option(
    "--texts",
    "count",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Texts to run, from the start of the data.",
)
@click.option(
    "--shown",
    type=click.IntRange(min=1),
    default=6,
    show_default=True,
    help="Texts in texts.png.",
)
@click.option(
    "--least-texts",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Texts that a word in words.png must occur in.",
)
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads of one graph.")
def main(
    model: Path, data: Path, output: Path, count: int, shown: int, least_texts: int, threads: int
) -> None:
    """Draw what BUNDLE_OR_CHECKPOINT keeps of the texts in a file."""
    try:
        pipeline, _ = open_models(model, threads=threads)
        cuts = [cut.position for cut in pipeline.reduction.cuts]
        with console.progress() as progress:
            texts = trace_texts(
                pipeline, list(islice(read_examples(data, pipeline.task), count)), progress=progress
            )
        bins = kept_by_length(np.array([text.lengths for text in texts]))
        write_figure(draw_kept_by_length(bins, cuts), output / "kept_by_length.png")
        write_figure(draw_words(word_shares(texts, least_texts), cuts), output / "words.png")
        write_figure(draw_texts(examples(texts, shown), cuts), output / "texts.png")
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    console.out.print(f"kept_by_length.png, words.png, texts.png: {output}", soft_wrap=True)


if __name__ == "__main__":
    main()
