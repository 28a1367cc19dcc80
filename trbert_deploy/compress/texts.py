"""The texts of a compression: to train on, to validate by, and held out to the end."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trbert_deploy.errors import DataError
from trbert_deploy.files import write_json_lines
from trbert_deploy.tasks.columns import LABEL, TEXT, TEXT_PAIR
from trbert_deploy.tasks.examples import Example, shuffled_units

#: Share of the texts that are held out for each of the two, and the most that this comes to.
HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 2000
FEWEST_TEXTS = 20
TRAIN, VALIDATION, TEST = "train.jsonl", "validation.jsonl", "test.jsonl"


@dataclass(frozen=True)
class SplitTexts:
    """How many texts there are of each kind, and whether the held-out ones have labels."""

    train: int
    validation: int
    test: int
    labelled: bool


def sample(examples: Iterable[Example], most: int, seed: int = 0) -> tuple[list[Example], int]:
    """At most so many of the examples, at random, and how many there were.

    One pass, whose memory is that of the sample (reservoir sampling, Vitter 1985, algorithm R).
    """
    chosen: list[Example] = []
    generator = random.Random(seed)
    count = 0
    for count, example in enumerate(examples, start=1):
        if len(chosen) < most:
            chosen.append(example)
        elif (place := generator.randrange(count)) < most:
            chosen[place] = example
    return chosen, count


def write_split(
    examples: Sequence[Example], directory: Path, *, judge_by_labels: bool, seed: int = 0
) -> SplitTexts:
    """Divide examples at random, and write them as JSON lines; pairs of one first text together.

    Args:
        judge_by_labels: keep the labels of the held-out texts, if all of these have one.

    Raises:
        DataError: too few of them.
    """
    if len(examples) < FEWEST_TEXTS:
        raise DataError(
            f"{len(examples)} texts are too few to learn from and to judge by: expected "
            f"{FEWEST_TEXTS} or more, better thousands"
        )
    held_out = max(1, min(MOST_HELD_OUT, int(len(examples) * HELD_OUT_SHARE)))
    parts: dict[str, list[Example]] = {TEST: [], VALIDATION: [], TRAIN: []}
    for unit in shuffled_units(examples, seed):
        open_parts = (name for name in (TEST, VALIDATION) if len(parts[name]) < held_out)
        parts[next(open_parts, TRAIN)] += [examples[place] for place in unit]
    judges = [*parts[TEST], *parts[VALIDATION]]
    labelled = judge_by_labels and all(example.target is not None for example in judges)
    for name, part in parts.items():
        keep = labelled or name == TRAIN
        write_json_lines(directory / name, [_record(each, keep) for each in part])
    return SplitTexts(len(parts[TRAIN]), len(parts[VALIDATION]), len(parts[TEST]), labelled)


def _record(example: Example, with_target: bool) -> dict[str, Any]:
    parts = (example.text,) if isinstance(example.text, str) else example.text
    record: dict[str, Any] = dict(zip((TEXT, TEXT_PAIR), parts, strict=False))
    if with_target and example.target is not None:
        record[LABEL] = example.target
    return record


def copy_some(source: Path, target: Path, most: int) -> None:
    """The first lines of a file; texts were written in random order."""
    with source.open(encoding="utf-8") as file:
        target.write_text("".join(islice(file, most)), encoding="utf-8")
