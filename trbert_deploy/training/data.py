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
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.runtime.tokenizing import TextTokenizer, rows_of
from trbert_deploy.tasks.columns import TEXT, TEXT_PAIR
from trbert_deploy.tasks.task import Example, Task
from trbert_deploy.tasks.text_classification import TextClassification

#: File name endings -> the datasets library's builder.
BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}

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
    source: str, split: str = "train", task: type[Task] = TextClassification
) -> list[Example]:
    """Read a JSONL, CSV or Parquet file (plain or gzipped), or a hub data set.

    The columns are ``text`` (and optional ``text_pair``) and ``label`` or ``labels``.

    Args:
        source: path, or name of a data set on the hub.
        split: split to take of a data set that has several.
        task: which columns hold the target, besides those of the text.

    Raises:
        StorageError: a path that does not exist or cannot be read.
        DataError: an unknown format, missing columns, no rows, or a row without text or label.
    """
    table = _load_table(source, split)
    column = next((name for name in task.columns if name in table.column_names), None)
    if TEXT not in table.column_names:
        raise DataError(
            f"{source} has the columns {', '.join(table.column_names)}: expected text (and "
            f"optionally text_pair and {task.columns[0]})"
        )
    if not len(table):
        raise DataError(f"{source} holds no rows: expected texts")
    feature = None if column is None else table.features[column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    present = set(table.column_names)
    wanted = [name for name in (TEXT, TEXT_PAIR, column) if name is not None and name in present]
    examples = []
    for number, values in enumerate(zip(*(table[name] for name in wanted), strict=True), start=1):
        record = dict(zip(wanted, values, strict=True))
        if column is not None and names is not None and record[column] is not None:
            record[column] = names[record[column]]
        examples.append(task.read(record, f"{source}, row {number}"))
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
    examples: Sequence[Example], tokenizer: TextTokenizer, task: Task, no_target: int
) -> list[TrainingRow]:
    """Examples as rows of tokens.

    Args:
        no_target: the head's mark of a row without a target.

    Raises:
        DataError: a target that the model does not know.
    """
    labelled = [example for example in examples if example.target is not None]
    known = iter(task.targets(labelled).tolist() if labelled else ())
    targets = [no_target if example.target is None else next(known) for example in examples]
    rows = rows_of(tokenizer.encode([example.text for example in examples]), task.protected)
    return [TrainingRow(row, target) for row, target in zip(rows, targets, strict=True)]
