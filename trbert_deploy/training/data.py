"""Reads labelled text through the datasets library and turns it into rows of tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, load_dataset

from trbert_deploy.errors import DataError, StorageError
from trbert_deploy.progress import Progress, no_progress, told
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.runtime.tokenizing import TextTokenizer, rows_of
from trbert_deploy.tasks.columns import TEXT, TEXT_PAIR
from trbert_deploy.tasks.task import Example, Task
from trbert_deploy.tasks.text_classification import TextClassification

#: File name endings -> the datasets library's builder.
BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}

#: Texts that are tokenized before progress is told of them again.
TOKENIZED_AT_A_TIME = 2000

VALIDATION_SHARE = 0.1
LARGEST_VALIDATION = 2000


@dataclass(frozen=True)
class TrainingRow:
    """A tokenized example.

    Attributes:
        target: as the model counts it, or the head's ``no_target``.
    """

    tokens: TokenRow
    target: int

    def __len__(self) -> int:
        return len(self.tokens)


def read_examples(
    source: str,
    split: str = "train",
    task: type[Task] = TextClassification,
    progress: Progress = no_progress,
) -> list[Example]:
    """Read a JSONL, CSV or Parquet file (plain or gzipped), or a hub data set.

    The columns are ``text`` (and optional ``text_pair``) and ``label`` or ``labels``.

    Args:
        source: path, or name of a data set on the hub.
        split: split to take of a data set that has several.
        task: which columns hold the target, besides those of the text.
        progress: told how many rows were read.

    Raises:
        StorageError: a path that does not exist or cannot be read.
        DataError: an unknown format, missing columns, no rows, or a row without text or label.
    """
    progress(f"read {source}", 0, None)
    table = _load_table(source, split)
    column = next((name for name in task.columns if name in table.column_names), None)
    if TEXT not in table.column_names or column is None:
        raise DataError(
            f"{source} has the columns {', '.join(table.column_names)}: expected text and "
            f"{task.columns[0]} (and optionally text_pair)"
        )
    if not len(table):
        raise DataError(f"{source} holds no rows: expected labelled texts")
    feature = table.features[column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    wanted = [name for name in (TEXT, TEXT_PAIR, column) if name in table.column_names]
    examples = []
    columns = zip(*(table[name] for name in wanted), strict=True)
    rows = told(f"read {source}", columns, progress, len(table))
    for number, values in enumerate(rows, start=1):
        record = dict(zip(wanted, values, strict=True))
        if names is not None and record[column] is not None:
            record[column] = names[record[column]]
        example = task.read(record, f"{source}, row {number}")
        if example.target is None:
            raise DataError(f"{source}, row {number} has no {task.columns[0]}")
        examples.append(example)
    return examples


def _load_table(source: str, split: str) -> Dataset:
    path = Path(source)
    if path.is_file():
        ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        if ending not in BUILDERS:
            raise DataError(
                f"{source} ends in {ending or 'nothing'}: expected one of "
                f"{', '.join(BUILDERS)}, plain or followed by .gz"
            )
        if not path.stat().st_size:
            raise DataError(f"{source} is empty: expected labelled texts")
        return _load(source, BUILDERS[ending], data_files=source)["train"]
    if path.exists() or path.suffix in (*BUILDERS, ".gz") or source.startswith((".", "/")):
        raise StorageError(f"{source} is not a file: expected data or the name of a data set")
    splits = _load(f"{source}, no file but a hub data set,", source)
    if split not in splits:
        raise DataError(f"{source} has the splits {', '.join(splits)}: expected {split}")
    return splits[split]


def _load(what: str, builder: str, **arguments: Any) -> DatasetDict:
    """A data set of ``load_dataset``; errors call it ``what``."""
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    try:
        return load_dataset(builder, **arguments)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as problem:
        cause = problem.__cause__ or problem
        raise DataError(f"{what} cannot be read: {str(cause).splitlines()[0]}") from None


def split_validation(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Hold a share of the examples out, at random: (training, validation)."""
    held_out = max(1, min(LARGEST_VALIDATION, int(len(examples) * VALIDATION_SHARE)))
    if len(examples) < 2:
        raise DataError("the training data has one row: expected more, some are held out")
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    return [examples[i] for i in order[held_out:]], [examples[i] for i in order[:held_out]]


def tokenize(
    examples: Sequence[Example],
    tokenizer: TextTokenizer,
    task: Task,
    progress: Progress = no_progress,
) -> list[TrainingRow]:
    """Examples as rows of tokens, some thousands at a time.

    Raises:
        DataError: a target that the model does not know.
    """
    targets = task.targets(examples).tolist()
    rows: list[TokenRow] = []
    progress("tokenize", 0, len(examples))
    for start in range(0, len(examples), TOKENIZED_AT_A_TIME):
        part = examples[start : start + TOKENIZED_AT_A_TIME]
        names = [f"text {start + place}" for place in range(1, len(part) + 1)]
        rows += rows_of(tokenizer.encode([each.text for each in part], names), task.protected)
        progress("tokenize", len(rows), len(examples))
    return [TrainingRow(row, target) for row, target in zip(rows, targets, strict=True)]
