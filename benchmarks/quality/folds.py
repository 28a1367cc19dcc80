"""Splits labelled texts into folds, for data sets that are too small for one test set.

    python benchmarks/quality/folds.py FILE [FILE ...] --output DIR [--folds 5] [--seed 0]

Writes DIR/fold-1/train.jsonl, validation.jsonl and test.jsonl, and so on. Each text is tested in
one fold. Of the others of a fold an eighth are validation data. Labels keep their shares.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from trbert_deploy.errors import DataError, TrbertError
from trbert_deploy.files import write_json_lines
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.training.data import read_data, require_targets

VALIDATION_PART = 8


def stratified(examples: Sequence[Example], seed: int) -> list[Example]:
    """Shuffled, label by label: every n-th of them is a sample that keeps the labels' shares."""
    order = list(examples)
    random.Random(seed).shuffle(order)
    return sorted(order, key=lambda example: example.target)


def split(examples: Sequence[Example], folds: int, seed: int) -> list[dict[str, list[Example]]]:
    """Training, validation and test examples of every fold."""
    order = stratified(examples, seed)
    parts = []
    for fold in range(folds):
        rest = [example for place, example in enumerate(order) if place % folds != fold]
        parts.append(
            {
                "train": [each for place, each in enumerate(rest) if place % VALIDATION_PART],
                "validation": rest[::VALIDATION_PART],
                "test": order[fold::folds],
            }
        )
    return parts


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="New files."
)
@click.option("--folds", default=5, show_default=True, type=click.IntRange(min=2))
@click.option("--seed", default=0, show_default=True)
def main(files: tuple[str, ...], output: Path, folds: int, seed: int) -> None:
    """Split the labelled texts of FILES, taken together."""
    try:
        examples = [
            example
            for file in files
            for example in require_targets(read_data(file, TextClassification), TextClassification)
        ]
        if len(examples) < folds * 2:
            raise DataError(f"{len(examples)} texts are too few for {folds} folds")
        for number, parts in enumerate(split(examples, folds, seed), start=1):
            for name, part in parts.items():
                random.Random(seed).shuffle(part)
                path = output / f"fold-{number}" / f"{name}.jsonl"
                write_json_lines(path, [_line(example) for example in part])
    except TrbertError as problem:
        sys.exit(f"error: {problem}")


def _line(example: Example) -> dict[str, Any]:
    if isinstance(example.text, str):
        return {"text": example.text, "label": example.target}
    text, pair = example.text
    return {"text": text, "text_pair": pair, "label": example.target}


if __name__ == "__main__":
    main()
