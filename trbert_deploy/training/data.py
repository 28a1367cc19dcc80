"""Reads the texts to train on, and turns them into rows of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding

from trbert_deploy.errors import ConfigError, DataError, StorageError
from trbert_deploy.lexicon.columns import VALUES
from trbert_deploy.lexicon.matcher import Match, Matcher
from trbert_deploy.progress import Progress, no_progress, told
from trbert_deploy.runtime.matching import with_matches
from trbert_deploy.runtime.reading.examples import Note, examples_of, no_note, read_examples
from trbert_deploy.runtime.reading.formats import is_data_file
from trbert_deploy.runtime.reading.sources import STDIN, is_regular
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.runtime.tokenizing import TOKENIZED_AT_A_TIME, TextTokenizer
from trbert_deploy.tasks.columns import ColumnNames
from trbert_deploy.tasks.examples import Example, shuffled_units
from trbert_deploy.tasks.task import Targets, Task
from trbert_deploy.training import processes

VALIDATION_SHARE = 0.1
LARGEST_VALIDATION = 2000


@dataclass(frozen=True)
class TrainingRow:
    """A tokenized example.

    Attributes:
        target: as the model counts it, a number or an array of them, or the task's ``no_target``.
    """

    tokens: TokenRow
    target: Any

    def __len__(self) -> int:
        return len(self.tokens)


def read_data(
    source: str,
    task: type[Task],
    split: str = "train",
    names: ColumnNames = ColumnNames(),
    note: Note = no_note,
    progress: Progress = no_progress,
) -> list[Example]:
    """Read a file, a pipe, standard input (``-``), or a hub data set.

    Args:
        source: path, or name of a data set on the hub.
        split: split to take of a data set that has several.
        task, names, note: as ``read_examples`` takes them.
        progress: told how many rows were read.

    Raises:
        ConfigError: several processes cannot read a pipe.
        StorageError: a path that does not exist or cannot be read.
        DataError: an unknown format, missing columns, no rows, or a row without text.
    """

    def all_of(examples: Iterable[Example]) -> list[Example]:
        return list(told(f"read {source}", examples, progress))

    path = Path(source)
    if path == STDIN or path.exists():
        if not is_regular(path) and processes.count() > 1:
            raise ConfigError(
                f"{source} can be read once, and each of {processes.count()} processes needs it: "
                "write it to a file"
            )
        return all_of(read_examples(path, task, names, note))
    if is_data_file(path) or source.startswith((".", "/")):
        raise StorageError(f"{source} is not a file: expected data or the name of a data set")
    from trbert_deploy.training.hub import read_hub

    return all_of(examples_of(read_hub(source, split), source, task, names, note))


def require_targets(examples: list[Example], task: Task | type[Task]) -> list[Example]:
    """Refuse examples without a target.

    Raises:
        DataError: there is one.
    """
    for example in examples:
        if example.target is None:
            raise DataError(f"{example.name} has no {task.columns[0]}")
    return examples


def split_validation(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Hold a share of the examples out, at random: (training, validation).

    Pairs of one first text are held out together, or not.
    """
    held_out = max(1, min(LARGEST_VALIDATION, int(len(examples) * VALIDATION_SHARE)))
    if len(examples) < 2:
        raise DataError("the training data has one row: expected more, some are held out")
    parts: tuple[list[Example], list[Example]] = ([], [])
    for unit in shuffled_units(examples, seed):
        validation = len(parts[1]) < held_out
        parts[validation].extend(examples[place] for place in unit)
    return parts


def tokenize(
    examples: Sequence[Example],
    tokenizer: TextTokenizer,
    task: Task,
    progress: Progress = no_progress,
    lexicon: Matcher | None = None,
) -> list[TrainingRow]:
    """Examples as rows of tokens, some thousands at a time.

    Args:
        lexicon: what finds phrases in texts, for a model that takes a lexicon.

    Raises:
        DataError: a target that the model does not know.
    """
    rows: list[TrainingRow] = []
    # What is wanted of a whole text may depend on the others: passages belong to a query.
    of_texts = (
        None if task.answers_tokens else iter(_targets(examples, [None] * len(examples), task))
    )
    for part, names, encodings in _encoded(examples, tokenizer, task, progress):
        for encoding, name in zip(encodings, names, strict=True):
            task.require_question(encoding, name)
        if of_texts is None:
            targets = _targets(part, encodings, task)
        else:
            targets = list(islice(of_texts, len(part)))
        tokens = tokenizer.rows(encodings, task.protected, names)
        if lexicon is not None:
            tokens = [
                _searched(*each, lexicon, task)
                for each in zip(tokens, encodings, part, strict=True)
            ]
        for row, target in zip(tokens, targets, strict=True):
            rows += in_windows(TrainingRow(row, target), task)
    return rows


def _searched(
    row: TokenRow, encoding: Encoding, example: Example, lexicon: Matcher, task: Task
) -> TokenRow:
    """A row with what a lexicon says of it, and how far the labels say the same."""
    assert isinstance(example.text, str)  # a task that takes a lexicon takes no pairs
    matches = lexicon.find(example.text)
    right = None
    if example.target is not None:
        right = {Match(*each) for each in task.right_matches(example)}
    return with_matches(row, encoding, example.text, matches, task.lexicon_tags, right, VALUES + 1)


def _encoded(
    examples: Sequence[Example],
    tokenizer: TextTokenizer,
    task: Task,
    progress: Progress = no_progress,
) -> Iterator[tuple[Sequence[Example], list[str], list[Encoding]]]:
    """Some thousands of examples at a time, with what errors call them and their encodings."""
    progress("tokenize", 0, len(examples))
    for start in range(0, len(examples), TOKENIZED_AT_A_TIME):
        part = examples[start : start + TOKENIZED_AT_A_TIME]
        names = [each.name or f"text {start + place}" for place, each in enumerate(part, start=1)]
        yield part, names, tokenizer.encode([task.input_of(each.text) for each in part], names)
        progress("tokenize", start + len(part), len(examples))


def targets_of(task: Task, rows: Sequence[TrainingRow]) -> Targets:
    """What is wanted of rows that all have a target, as the task's measures take it."""
    targets = [row.target for row in rows]
    return targets if task.answers_tokens else np.stack(targets)


def in_windows(row: TrainingRow, task: Task) -> list[TrainingRow]:
    """The row, or its windows where it is too long for the model."""
    if not row.tokens.windows:
        return [row]
    return [
        TrainingRow(row.tokens.part(window), task.target_of(row.target, window))
        for window in row.tokens.windows
    ]


def _targets(
    examples: Sequence[Example], encodings: Sequence[Encoding | None], task: Task
) -> list[Any]:
    """The target of each example, or that of one without."""
    pairs = list(zip(examples, encodings, strict=True))
    labelled = [pair for pair in pairs if pair[0].target is not None]
    known = iter(task.targets(*zip(*labelled, strict=True)) if labelled else ())
    return [
        task.no_target(encoding) if example.target is None else next(known)
        for example, encoding in pairs
    ]
