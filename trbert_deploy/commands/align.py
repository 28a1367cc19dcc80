"""The command ``trbert-deploy align``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trbert_deploy import console
from trbert_deploy.alignment.methods import METHODS
from trbert_deploy.alignment.places import LEVELS
from trbert_deploy.bounds import MOST_TEXTS, MOST_TOKENS
from trbert_deploy.commands.answer_lines import note_truncated, write_answers
from trbert_deploy.commands.numbers import Whole
from trbert_deploy.commands.options import (
    bundle_argument,
    column_options,
    needs,
    threads_option,
    truncate_option,
)
from trbert_deploy.runtime.backends.registry import DEFAULT_BACKEND, backends_of_states
from trbert_deploy.tasks.columns import ColumnNames

if TYPE_CHECKING:
    from trbert_deploy.alignment.aligner import Alignment


@click.command()
@bundle_argument
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    required=True,
    metavar="FILE",
    help="Pairs of texts in a file; - for stdin.",
)
@column_options(label=False)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write to this file instead.",
)
@click.option(
    "--layer",
    type=Whole(0, MOST_TOKENS),
    metavar="K",
    help="States after layer K [default: the bundle's last]",
)
@click.option(
    "--level",
    type=click.Choice([*LEVELS]),
    metavar="NAME",
    default="words",
    show_default=True,
    help="words or characters.",
)
@click.option(
    "--method",
    type=click.Choice([*METHODS]),
    metavar="NAME",
    default="mutual",
    show_default=True,
    help="mutual, itermax or matching.",
)
@click.option(
    "--plots",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Draw each pair's similarities here, as PNG.",
)
@click.option(
    "--backend",
    type=click.Choice(backends_of_states()),
    metavar="NAME",
    default=DEFAULT_BACKEND,
    show_default=True,
    help=f"{', '.join(backends_of_states())}.",
)
@threads_option
@click.option(
    "--batch-size",
    type=Whole(1, MOST_TEXTS // 2),
    metavar="N",
    default=32,
    show_default=True,
    help="Pairs per call.",
)
@truncate_option
@needs("export")
def align(
    bundle: Path,
    source: Path,
    columns: ColumnNames,
    output: Path | None,
    layer: int | None,
    level: str,
    method: str,
    plots: Path | None,
    backend: str,
    threads: int,
    batch_size: int,
    truncate: bool,
) -> None:
    """Align the words or characters of pairs of texts: one JSON object a line.

    BUNDLE is exported with --states-after. No token is removed here.
    """
    from trbert_deploy.alignment.aligner import Aligner
    from trbert_deploy.alignment.lines import align_examples, to_json_line
    from trbert_deploy.runtime.reading.examples import count_examples, read_examples
    from trbert_deploy.runtime.reading.sources import STDIN
    from trbert_deploy.tasks.text_classification import TextClassification

    aligner = Aligner(
        bundle,
        layer=layer,
        level=level,
        method=method,
        backend=backend,
        threads=threads,
        truncate=truncate,
    )
    examples = read_examples(
        source, TextClassification, columns, console.notes.print, with_targets=False
    )
    alignments = align_examples(aligner, examples, batch_size)
    if plots is not None:
        alignments = _drawn(alignments, plots)
    lines = (to_json_line(alignment) for alignment in alignments)
    count = partial(count_examples, source, columns)
    write_answers(lines, output, "align", count, waits=source == STDIN)
    note_truncated(aligner.tokenizer)


def _drawn(alignments: Iterable[Alignment], folder: Path) -> Iterator[Alignment]:
    """Alignments, each of them once it is drawn."""
    from trbert_deploy.reports.plots.alignments import write_alignment_plot

    folder.mkdir(parents=True, exist_ok=True)
    for number, alignment in enumerate(alignments, start=1):
        write_alignment_plot(alignment, folder / f"pair_{number:06}.png")
        yield alignment
