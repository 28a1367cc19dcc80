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
from trbert_deploy.runtime.tokenizing import Text, TextTokenizer

#: File name endings -> the datasets library's builder.
BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}

VALIDATION_SHARE = 0.1
LARGEST_VALIDATION = 2000


@dataclass(frozen=True)
class Example:
    """One labelled text, or pair of texts."""

    text: Text
    label: str


@dataclass(frozen=True)
class LabelledRow:
    """A tokenized example; ``label`` is the index of its class."""

    tokens: TokenRow
    label: int

    def __len__(self) -> int:
        return len(self.tokens)


def read_examples(source: str, split: str = "train") -> list[Example]:
    """Read a JSONL, CSV or Parquet file (plain or gzipped), or a hub data set.

    The columns are ``text`` (and optional ``text_pair``) and ``label`` or ``labels``.

    Args:
        source: path, or name of a data set on the hub.
        split: split to take of a data set that has several.

    Raises:
        StorageError: a path that does not exist or cannot be read.
        DataError: an unknown format, missing columns, no rows, or a row without text or label.
    """
    table = _load_table(source, split)
    label_column = next((name for name in ("label", "labels") if name in table.column_names), None)
    if "text" not in table.column_names or label_column is None:
        raise DataError(
            f"{source} has the columns {', '.join(table.column_names)}: expected text and label "
            "(and optionally text_pair)"
        )
    if not len(table):
        raise DataError(f"{source} holds no rows: expected labelled texts")
    feature = table.features[label_column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    pairs = table["text_pair"] if "text_pair" in table.column_names else [None] * len(table)
    columns = zip(table["text"], pairs, table[label_column], strict=True)
    return [
        _example(f"{source}, row {number}", text, pair, label, names)
        for number, (text, pair, label) in enumerate(columns, start=1)
    ]


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


def _example(where: str, text: Any, pair: Any, label: Any, names: Sequence[str] | None) -> Example:
    for part in (text,) if pair is None else (text, pair):
        if not isinstance(part, str) or not part.strip():
            raise DataError(f"{where} has no text: expected at least one word")
    if label is None or label == "":
        raise DataError(f"{where} has no label")
    if names is not None:
        label = names[label]
    return Example(text if pair is None else (text, pair), str(label))


def split_validation(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Hold a share of the examples out, at random: (training, validation)."""
    held_out = max(1, min(LARGEST_VALIDATION, int(len(examples) * VALIDATION_SHARE)))
    if len(examples) < 2:
        raise DataError("the training data has one row: expected more, some are held out")
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    return [examples[i] for i in order[held_out:]], [examples[i] for i in order[:held_out]]


def labels_in(examples: Sequence[Example]) -> tuple[str, ...]:
    """The labels that occur, sorted.

    Raises:
        DataError: fewer than two.
    """
    labels = tuple(sorted({example.label for example in examples}))
    if len(labels) < 2:
        raise DataError(f"the data has one label only ({labels[0]}): expected two or more")
    return labels


def tokenize(
    examples: Sequence[Example], tokenizer: TextTokenizer, labels: Sequence[str]
) -> list[LabelledRow]:
    """Examples as rows of tokens.

    Raises:
        DataError: a label that is not among ``labels``.
    """
    index = {label: place for place, label in enumerate(labels)}
    unknown = sorted({example.label for example in examples} - set(index))
    if unknown:
        raise DataError(
            f"the data has labels that the model does not know: {', '.join(unknown)} "
            f"(it knows {', '.join(labels)})"
        )
    rows = tokenizer([example.text for example in examples])
    return [
        LabelledRow(row, index[example.label]) for row, example in zip(rows, examples, strict=True)
    ]
