"""Data sets of the Hugging Face hub, through the datasets library."""

from __future__ import annotations

from collections.abc import Iterator

import datasets

from trbert_deploy.errors import DataError, first_line
from trbert_deploy.runtime.reading.parquet import class_label
from trbert_deploy.runtime.reading.records import Record


def read_hub(name: str, split: str) -> Iterator[Record]:
    """The rows of a split of a data set; class labels, alone and in lists, stand for their numbers.

    Raises:
        DataError: the data set cannot be read, or has no such split.
    """
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    try:
        splits = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as problem:
        cause = first_line(problem.__cause__ or problem)
        raise DataError(f"{name}, no file but a hub data set, cannot be read: {cause}") from None
    if split not in splits:
        raise DataError(f"{name} has the splits {', '.join(splits)}: expected {split}")
    features = splits[split].features
    # Pictures and sounds would be decoded, which needs further packages.
    plain = [column for column, kind in features.items() if not hasattr(kind, "decode_example")]
    inner = {column: getattr(kind, "feature", kind) for column, kind in features.items()}
    labels = {
        column: kind.names
        for column, kind in inner.items()
        if isinstance(kind, datasets.ClassLabel)
    }
    for number, row in enumerate(splits[split].select_columns(plain), start=1):
        named = {column: class_label(names, row[column]) for column, names in labels.items()}
        yield Record(f"{name}, row {number}", {**row, **named})
