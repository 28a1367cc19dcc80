"""Makes a first lesson of questions with short contexts (SQuAD 2.0).

    python benchmarks/quality/short_contexts.py TRAIN OUTPUT [--seed 0]

TRAIN is JSONL, gzipped or not, with the fields of SQuAD. OUTPUT has the same questions, each with
the sentences that its first answer stands in and one beside them; with two sentences of its context
where it has no answer. A new head learns on them first, at a third of the price.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from retrieval import sentence_starts, squad_records

from trbert_deploy.errors import TrbertError
from trbert_deploy.files import write_json_lines


def shortened(record: Mapping[str, Any], generator: random.Random) -> dict[str, Any]:
    """A question with a part of its context."""
    context, answers = record["context"], record["answers"]
    starts = sentence_starts(context)
    stops = [*starts[1:], len(context)]
    answered = bool(answers["text"])
    if answered:
        begin = answers["answer_start"][0]
        end = begin + len(answers["text"][0])
        first = max(place for place, start in enumerate(starts) if start <= begin)
        last = min(place for place, stop in enumerate(stops) if stop >= end)
    else:
        first = last = generator.randrange(len(starts))
    before = generator.random() < 0.5
    if before and first:
        first -= 1
    elif last + 1 < len(starts):
        last += 1
    start = starts[first]
    part = {
        "text": answers["text"][:1],
        "answer_start": [begin - start] if answered else [],
    }
    return {**record, "context": context[start : stops[last]], "answers": part}


@click.command()
@click.argument("train", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--seed", default=0, show_default=True)
def main(train: Path, output: Path, seed: int) -> None:
    """Write the questions of TRAIN with short contexts to OUTPUT."""
    generator = random.Random(seed)
    try:
        rows = [shortened(record, generator) for record in squad_records(train)]
        write_json_lines(output, rows)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()
