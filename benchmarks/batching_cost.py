"""What padding and the size of calls are worth: texts as they are, with more or less of both.

    python benchmarks/batching_cost.py BUNDLE --data texts.jsonl --shares 0,0.03,0.1
    python benchmarks/batching_cost.py BUNDLE --data texts.jsonl --slots 0,16,32 --batch 4
    python benchmarks/batching_cost.py BUNDLE --data texts.jsonl --calls 512,1024,8192

Rows of exactly one length share a call without padding; rows of nearly one length can share it
with some. Fewer and larger calls, but wasted slots and a mask. And more rows of one length can
share a call, which then reads weights less often, and needs more memory at a time. All limits
answer the same texts in turns, dense and reduced, all texts to the end of the chain. Times are the
processor's, which other work on the machine distorts least.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice, product
from pathlib import Path

import click
import numpy as np
from rich.table import Table

from trbert_deploy import console
from trbert_deploy.batching import Padding
from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.commands.numbers import Wholes
from trbert_deploy.commands.options import json_option, operating_point_options, precision_option
from trbert_deploy.errors import TrbertError
from trbert_deploy.files import write_json
from trbert_deploy.machine import describe_machine
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.reading.examples import read_examples
from trbert_deploy.runtime.tokenizing import TruncationWarning
from trbert_deploy.selection.operating_point import OperatingPoint


def upto(most: float) -> Callable[[click.Context, click.Option, str], tuple[float, ...]]:
    """Reads numbers from 0 to ``most`` with commas between them."""

    def numbers(context: click.Context, option: click.Option, value: str) -> tuple[float, ...]:
        try:
            found = tuple(float(part) for part in value.split(","))
        except ValueError:
            found = (-1.0,)
        if not all(0 <= number <= most for number in found):
            raise click.BadParameter(f"{value!r}: expected numbers from 0 to {most:,}, as 0,0.5")
        return found

    return numbers


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Real texts."
)
@click.option("--backend", default="onnxruntime", show_default=True)
@precision_option
@operating_point_options
@click.option(
    "--shares",
    default="0",
    show_default=True,
    callback=upto(1),
    help="Most of a call's slots that may be padding.",
)
@click.option(
    "--slots",
    default="0",
    show_default=True,
    callback=upto(MOST_TOKENS),
    help="Slots of padding that a call less is worth.",
)
@click.option(
    "--calls",
    type=Wholes(MOST_TOKENS),
    default="1024",
    show_default=True,
    help="Most slots of a call.",
)
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--batches", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@json_option
def main(
    bundle: Path,
    data: Path,
    backend: str,
    precision: str | None,
    point: OperatingPoint,
    shares: tuple[float, ...],
    slots: tuple[float, ...],
    calls: tuple[int, ...],
    batch: int,
    batches: int,
    rounds: int,
    json_path: Path | None,
) -> None:
    """Time texts with BUNDLE, by how much of a call may be padding, and how large calls may be."""
    warnings.simplefilter("ignore", TruncationWarning)
    try:
        pipeline = load(bundle, backend, precision=precision, threads=1, **asdict(point))
        pipeline = pipeline.to_the_end()
        texts = [
            str(text.text) for text in islice(read_examples(data, pipeline.task), batch * batches)
        ]
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    rows = pipeline.tokenize(texts)
    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    limits = list(
        product([Padding(share, int(most)) for share, most in product(shares, slots)], calls)
    )
    chains = [pipeline.chain.at(OperatingPoint()) for _ in limits]
    for chain, (padding, most) in zip(chains, limits, strict=True):
        chain.padding, chain.call_tokens = padding, most
    spent = np.empty((2, len(chains), rounds + 1, len(parts)))
    with console.progress() as progress:
        for number in range(rounds + 1):  # the first warms up
            for place, part in enumerate(parts):
                for index, chain in enumerate(chains):
                    for dense, run in enumerate((chain.run, chain.run_dense)):
                        start = time.process_time()
                        run(part)
                        spent[dense, index, number, place] = time.process_time() - start
                done = number * len(parts) + place + 1
                progress("time", done, (rounds + 1) * len(parts))
    reduced, dense = 1000.0 * np.median(spent[:, :, 1:], axis=(2, 3))
    settings = dict(pipeline.chain.backend.description)
    name = f"{settings['backend']} {settings.get('precision', '')}"
    table = Table(title=f"{name}: median ms of {batch} texts")
    for heading in ("padding, share", "slots", "slots of a call", "dense", "reduced"):
        table.add_column(heading, justify="right")
    for (padding, most), whole, less in zip(limits, dense, reduced, strict=True):
        share, slots_worth = f"{padding.share:.0%}", f"{padding.slots}"
        table.add_row(share, slots_worth, f"{most:,}", f"{whole:.1f}", f"{less:.1f}")
    console.out.print(table)
    if json_path is not None:
        figures = [
            {**asdict(padding), "call_tokens": most, "dense_ms": whole, "reduced_ms": less}
            for (padding, most), whole, less in zip(
                limits, dense.tolist(), reduced.tolist(), strict=True
            )
        ]
        write_json(
            json_path, {"machine": describe_machine(), "settings": settings, "batch": figures}
        )


if __name__ == "__main__":
    main()
