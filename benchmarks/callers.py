"""How much more several callers get out of one model than a single caller does.

    python benchmarks/callers.py BUNDLE --data texts.jsonl --callers 2

One pipeline with one thread per graph is called by one thread, and by several at once, in turns;
each caller answers all texts, one at a time. With a core for each caller, twice the callers answer
at most twice the texts in a second.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import click
import numpy as np

from trbert_deploy import console
from trbert_deploy.commands.options import json_option, operating_point_options
from trbert_deploy.errors import DataError, TrbertError
from trbert_deploy.files import write_json
from trbert_deploy.machine import describe_machine
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.reading.examples import read_examples
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.selection.operating_point import OperatingPoint


def rows_per_second(pipeline: Pipeline, rows: list[TokenRow], callers: int, dense: bool) -> float:
    """What ``callers`` threads answer together, each of them all rows, one at a time."""

    def call(_: int) -> None:
        for row in rows:
            pipeline.run([row], dense=dense)

    with ThreadPoolExecutor(callers) as pool:
        start = time.perf_counter()
        list(pool.map(call, range(callers)))
        return callers * len(rows) / (time.perf_counter() - start)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Real texts."
)
@click.option("--backend", default="onnxruntime", show_default=True)
@operating_point_options
@click.option("--callers", type=click.IntRange(min=2), default=2, show_default=True)
@click.option("--texts", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@json_option
def main(
    bundle: Path,
    data: Path,
    backend: str,
    point: OperatingPoint,
    callers: int,
    texts: int,
    rounds: int,
    json_path: Path | None,
) -> None:
    """Compare one caller of BUNDLE with several."""
    try:
        pipeline = load(bundle, backend, threads=1, **asdict(point))
        rows = pipeline.tokenize(
            [str(text.text) for text in islice(read_examples(data, pipeline.task), texts)]
        )
        if not rows:
            raise DataError(f"{data} has no texts: expected at least one")
        figures = {}
        for name, dense in (("dense", True), ("reduced", False)):
            for count in (1, callers):
                rows_per_second(pipeline, rows, count, dense)  # warms up
            pairs = [
                [rows_per_second(pipeline, rows, count, dense) for count in (1, callers)]
                for _ in range(rounds)
            ]
            one, several = np.median(pairs, axis=0)
            gain = float(np.median([more / less for less, more in pairs]))
            figures[name] = {"one": one, "several": several, "gain": gain}
            console.out.print(
                f"{name}: one caller {one:.1f} texts a second, {callers} callers {several:.1f}: "
                f"{gain:.2f} times as many"
            )
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    if json_path is not None:
        write_json(json_path, {"machine": describe_machine(), "callers": callers, **figures})


if __name__ == "__main__":
    main()
