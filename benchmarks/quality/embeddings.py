"""Finds paragraphs by their embeddings, dense and reduced (SQuAD 2.0's questions).

    python benchmarks/quality/embeddings.py BUNDLE TEST [--threshold P ...] [--json FILE]

TEST has SQuAD's fields; questions without an answer are left out, its paragraphs are the
collection. Questions are embedded by the dense model, as they are short, and paragraphs by each row
of the table:

    dense        no token removed
    reduced      the chain at each ``--threshold`` (the bundle's own by default)
    attention    the chain of the first threshold, but the attention that tokens receive decides
    random       the same, by chance
    truncation   the dense model on a paragraph's first tokens

The last three were not trained for it; they save as many operations as the first threshold does.
Figures: nDCG@10 and MRR@10 of a question's own paragraph, the difference to the dense model with
its 95 % interval by paired bootstrap over the questions, the mean cosine of a paragraph's embedding
to the dense one, operations and time of the paragraphs, the dense model's over the row's, in turns.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from retrieval import read_collection
from scores import embeddings, gains

from trbert_deploy import console, load
from trbert_deploy.bench.baselines import first_tokens, replay, select_by_chance, with_ratio
from trbert_deploy.errors import TrbertError
from trbert_deploy.evaluation.metrics import paired_change
from trbert_deploy.evaluation.quality import ModelRun, run_in_turns
from trbert_deploy.files import write_json
from trbert_deploy.flops import dense_flops
from trbert_deploy.modeling.received_attention import select_by_attention
from trbert_deploy.modeling.torch_backend import load_model
from trbert_deploy.runtime.embedding import embedding_task
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.tokenizing import TruncationWarning
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.task import mean_score


@dataclass(frozen=True)
class Row:
    """What one way to embed paragraphs comes to; see the module."""

    name: str
    ndcg_10: float
    mrr_10: float
    change: float
    interval: tuple[float, float]
    cosine: float
    flops_speedup: float
    measured_speedup: float


def embeddings_of(run: ModelRun) -> NDArray[np.float32]:
    """What a model made of the texts: [N, D], of length 1."""
    return embeddings(embedding_task(run.pipeline), run.outputs)


def baselines(pipeline: Pipeline, texts: Sequence[Example], speedup: float) -> dict[str, ModelRun]:
    """The ways that were not trained, at one saving of operations."""
    rows = pipeline.tokenize([text.text for text in texts])
    lengths = np.array([len(row) for row in rows], np.int64)
    reduction = with_ratio(pipeline.encoder, pipeline.reduction, lengths, speedup)
    model = load_model(pipeline.require_bundle())
    generator = np.random.default_rng(0)
    chosen = {
        "attention": [select_by_attention(model, row, reduction) for row in rows],
        "random": [select_by_chance(row, reduction, generator) for row in rows],
    }
    runs = {name: ModelRun(replay(pipeline, rows, kept)) for name, kept in chosen.items()}
    wanted = float(dense_flops(pipeline.encoder, lengths).sum()) / speedup
    count = max(
        count
        for count in range(2, int(lengths.max()) + 1)
        if dense_flops(pipeline.encoder, np.minimum(lengths, count)).sum() <= wanted
    )
    runs["truncation"] = ModelRun(pipeline, dense=True, view=first_tokens(count))
    return runs


def compare(bundle: Path, test: Path, thresholds: Sequence[float], threads: int) -> list[Row]:
    """Embed questions and paragraphs, and judge each way."""
    pipeline = load(bundle, threads=threads)
    collection = read_collection(test)
    questions = list(collection.relevant)
    own = np.array([collection.relevant[question][0] for question in questions])
    texts = [Example(paragraph) for paragraph in collection.paragraphs]
    with console.progress() as progress:
        asked = ModelRun(pipeline, dense=True)
        run_in_turns([asked], [Example(question) for question in questions], progress)
        points = [pipeline.at_threshold(each) for each in thresholds] or [pipeline]
        probe = ModelRun(points[0])
        dense = ModelRun(pipeline, dense=True)
        run_in_turns([dense, probe], texts, progress)
        runs = {"dense": ModelRun(pipeline, dense=True)}
        for place, point in enumerate(points):
            runs[f"reduced, {thresholds[place]:g}" if thresholds else "reduced"] = ModelRun(point)
        runs |= baselines(pipeline, texts, dense.flops / probe.flops)
        run_in_turns(list(runs.values()), texts, progress, batch_size=32)
    asking = embeddings_of(asked)
    found = {name: embeddings_of(run) for name, run in runs.items()}
    judged = {name: gains(asking, each, own) for name, each in found.items()}
    base = runs["dense"]
    rows = []
    for name, run in runs.items():
        change = paired_change(mean_score, judged["dense"][:, :1], judged[name][:, :1])
        rows.append(
            Row(
                name,
                float(judged[name][:, 0].mean()),
                float(judged[name][:, 1].mean()),
                100 * change.value,
                (100 * change.interval[0], 100 * change.interval[1]),
                float((found[name] * found["dense"]).sum(1).mean()),
                base.flops / run.flops,
                base.timing.total_seconds / run.timing.total_seconds,
            )
        )
    return rows


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.argument("test", type=click.Path(path_type=Path, exists=True))
@click.option("--threshold", "thresholds", type=float, multiple=True)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path))
def main(
    bundle: Path, test: Path, thresholds: tuple[float, ...], threads: int, output: Path | None
) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            rows = compare(bundle, test, thresholds, threads)
    except TrbertError as problem:
        raise click.ClickException(str(problem)) from None
    print(f"{'':16} nDCG@10  MRR@10  change [95 %]             cosine  FLOPs   time")
    for row in rows:
        low, high = row.interval
        print(
            f"{row.name:16} {row.ndcg_10:7.4f} {row.mrr_10:7.4f}  {row.change:+5.2f} "
            f"[{low:+5.2f}, {high:+5.2f}]  {row.cosine:11.4f}  {row.flops_speedup:4.2f}x  "
            f"{row.measured_speedup:4.2f}x"
        )
    if output is not None:
        write_json(output, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
