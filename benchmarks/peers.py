"""Times one checkpoint under other runtimes, dense, and under ours, dense and reduced.

    python benchmarks/peers.py CHECKPOINT --data texts.jsonl --lengths 128,512 --batch 32 \\
        --threads 1 --json peers.json --plot peers.png

All of them answer the same rows of real text, from the same weights, in turns whose order changes
from round to round, after each has seen every row once. Batch 1 takes rows of exactly each length;
the batch takes texts as they are, at most as long as the longest length. Timed is the way from
rows of tokens to logits, padding included. A row's time is the median of its rounds, a contender's
the mean over rows: where rows leave at exits some take far less than others, and the mean is what
they cost together.

A peer that cannot be installed beside us makes its graph in an environment of its own, and it runs
here like the others:

    python -m venv optimum && optimum/bin/pip install -r benchmarks/optimum.txt
    optimum/bin/optimum-cli export onnx --model CHECKPOINT --task text-classification \\
        --optimize O3 optimum/graph
    python benchmarks/peers.py ... --graph "optimum-onnx O3=optimum/graph/model.onnx"
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random

import click
import numpy as np
import torch
from contenders import (
    BASELINE,
    CONTENDERS,
    Answer,
    Unavailable,
    Workshop,
    run_in_onnxruntime,
)
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

from trbert_deploy import console
from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.commands.numbers import Wholes
from trbert_deploy.commands.options import json_option, png_file
from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.files import write_json
from trbert_deploy.machine import describe_machine
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.progress import Progress
from trbert_deploy.reports.plots.figure import write_figure
from trbert_deploy.runtime.reading.examples import read_examples
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.runtime.tokenizing import TextTokenizer, TruncationWarning
from trbert_deploy.tasks.registry import task_of

REFERENCE = "PyTorch fp32, sdpa"
_OURS, _PEERS = "#0072b2", "#7f7f7f"


@dataclass(frozen=True)
class Case:
    """Batches that are answered one at a time."""

    name: str
    batches: Sequence[Sequence[TokenRow]]


@dataclass(frozen=True)
class Timing:
    """A contender on a case.

    Attributes:
        mean: milliseconds a batch, of each the median of its rounds.
        p95: milliseconds a batch.
        speedup: the baseline's mean over its own.
        same_labels: share of the rows with the label that PyTorch in float32 gives.
    """

    mean: float
    p95: float
    speedup: float
    same_labels: float


def measure(
    contenders: dict[str, Answer], case: Case, rounds: int, progress: Progress
) -> dict[str, Timing]:
    """Time all contenders on a case, in turns."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in contenders}
    labels: dict[str, list[NDArray[np.int64]]] = {name: [] for name in contenders}
    order, random = list(contenders), Random(0)
    for turn in range(rounds + 1):  # the first warms up
        for name in seconds:
            seconds[name].append([])
        for place, batch in enumerate(case.batches):
            random.shuffle(order)
            for name in order:
                start = time.perf_counter()
                logits = contenders[name](batch)
                seconds[name][turn].append(time.perf_counter() - start)
                if not turn:
                    labels[name].append(logits.argmax(1))
            progress(
                case.name, turn * len(case.batches) + place + 1, (rounds + 1) * len(case.batches)
            )
    taken = {name: 1000.0 * np.array(turns[1:]) for name, turns in seconds.items()}
    means = {name: float(np.median(times, axis=0).mean()) for name, times in taken.items()}
    baseline = means[BASELINE if BASELINE in means else REFERENCE]
    expected = np.concatenate(labels[REFERENCE])
    return {
        name: Timing(
            mean=means[name],
            p95=float(np.quantile(times, 0.95)),
            speedup=baseline / means[name],
            same_labels=float((np.concatenate(labels[name]) == expected).mean()),
        )
        for name, times in taken.items()
    }


def make_contenders(shop: Workshop, wanted: Sequence[str]) -> dict[str, Answer]:
    """Those of the ``wanted`` that can be made here; the reference always."""
    made = {}
    for name, make in CONTENDERS.items():
        if name != REFERENCE and wanted and not any(each in name for each in wanted):
            continue
        try:
            made[name] = make(shop)
        except Unavailable as reason:
            console.notes.print(f"left out: {name}: {reason}")
    return made


def named_graphs(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, Path]:
    """NAME=FILE, each name once."""
    graphs = {}
    for value in values:
        name, _, file = value.rpartition("=")
        if not (name and file) or name in graphs or name in CONTENDERS:
            raise click.BadParameter(f"{value!r}: expected NAME=FILE, with a name of its own")
        graphs[name] = Path(file)
    return graphs


def print_table(timings: dict[str, dict[str, Timing]]) -> None:
    table = Table(title="mean ms (times as fast as the plain export; same labels as PyTorch)")
    table.add_column("")
    for case in timings:
        table.add_column(case, justify="right")
    for name in next(iter(timings.values())):
        cells = [
            f"{each[name].mean:.1f} ({each[name].speedup:.2f}x; {each[name].same_labels:.0%})"
            for each in timings.values()
        ]
        table.add_row(name, *cells)
    console.out.print(table)


def draw(timings: dict[str, dict[str, Timing]]) -> Figure:
    """A panel of bars for each case, the fastest contender on top."""
    names = len(next(iter(timings.values())))
    figure = Figure(figsize=(4.0 + 3.2 * len(timings), 1.2 + 0.26 * names), layout="constrained")
    panels = figure.subplots(1, len(timings), squeeze=False)[0]
    for axes, (case, each) in zip(panels, timings.items(), strict=True):
        ordered = sorted(each, key=lambda name: -each[name].mean)
        means = [each[name].mean for name in ordered]
        colors = [_OURS if name.startswith("ours") else _PEERS for name in ordered]
        hatches = ["//" if "reduced" in name else "" for name in ordered]
        bars = axes.barh(ordered, means, color=colors, hatch=hatches, edgecolor="white")
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        axes.set_title(case, fontsize=9)
        axes.set_xlabel("mean, ms")
        axes.tick_params(labelsize=7)
        axes.margins(x=0.15)
    return figure


@click.command(epilog="Contenders: " + "; ".join(CONTENDERS) + ".")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Real texts."
)
@click.option("--lengths", default="128,512", show_default=True, type=Wholes(MOST_TOKENS))
@click.option("--texts", default=8, show_default=True, help="Rows of each length.")
@click.option("--batch", default=32, show_default=True, help="Texts of the batch; 0 for none.")
@click.option("--rounds", default=5, show_default=True, help="Times that each row is timed.")
@click.option("--threads", default=1, show_default=True, help="Of every runtime.")
@click.option("--only", multiple=True, help="Contenders with this in their names.")
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    metavar="NAME=FILE",
    callback=named_graphs,
    help="One more contender: the same dense model as an ONNX graph that another tool made.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), callback=png_file, help="PNG file to write."
)
@json_option
def main(
    checkpoint: Path,
    data: Path,
    lengths: tuple[int, ...],
    texts: int,
    batch: int,
    rounds: int,
    threads: int,
    only: tuple[str, ...],
    graphs: dict[str, Path],
    plot: Path | None,
    json_path: Path | None,
) -> None:
    """Time CHECKPOINT under other runtimes and ours."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", TruncationWarning)  # the longest length is a choice here
    try:
        loaded = load_checkpoint(checkpoint)
        if max(lengths) > loaded.max_length:
            raise ConfigError(
                f"length {max(lengths)}: {checkpoint} takes at most {loaded.max_length} tokens"
            )
        tokenizer = TextTokenizer(checkpoint / TOKENIZER_FILE, max(lengths))
        task = task_of(loaded.model.spec)
        corpus = [
            str(text.text) for text in islice(read_examples(data, task), max(64, texts, batch))
        ]
        sample = tokenizer.rows(tokenizer.encode(corpus), task.protected)
        cases = [
            Case(
                f"{length} tokens",
                [[row] for row in tokenizer.rows_of_length(corpus, length, texts)],
            )
            for length in lengths
        ]
        if batch:
            cases.append(Case(f"batch of {batch} texts", [sample[:batch]]))
        with tempfile.TemporaryDirectory() as scratch, console.progress() as progress:
            shop = Workshop(checkpoint, Path(scratch), threads, sample)
            others = {name: run_in_onnxruntime(graph, threads) for name, graph in graphs.items()}
            contenders = make_contenders(shop, only) | others
            timings = {case.name: measure(contenders, case, rounds, progress) for case in cases}
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    print_table(timings)
    if plot is not None:
        write_figure(draw(timings), plot)
    if json_path is not None:
        figures = {
            case: {name: asdict(timing) for name, timing in each.items()}
            for case, each in timings.items()
        }
        write_json(json_path, {"machine": describe_machine(), "threads": threads, "cases": figures})


if __name__ == "__main__":
    main()
