"""Parquet, through pyarrow."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from trbert_deploy.errors import DataError, MissingDependencyError, first_line
from trbert_deploy.runtime.reading.records import Record
from trbert_deploy.runtime.reading.sources import Source

MAGIC = b"PAR1"
#: Where the datasets library keeps its own description.
_WRITTEN_BY = b"huggingface"
#: Rows that are unpacked at a time.
ROWS = 256


def read_parquet(source: Source) -> Iterator[Record]:
    """The rows of a file, some at a time; a pipe or a compressed file is read as a whole first.

    Class labels that the datasets library saved with the file stand for their numbers.

    Raises:
        MissingDependencyError: pyarrow is not installed.
        DataError: the file is damaged.
    """
    try:
        import pyarrow
        from pyarrow import parquet, types
    except ModuleNotFoundError:
        raise MissingDependencyError("reading Parquet", "pyarrow", "parquet") from None
    if not source.stream.peek(1):
        return
    file = source.file or io.BytesIO(io.BufferedReader(source.stream).read())
    row = 0
    try:
        opened = parquet.ParquetFile(file)
        schema = opened.schema_arrow
        labels = _class_labels(schema.metadata or {})
        # What says when something was needs further packages to be read, and holds no text.
        wanted = [field.name for field in schema if not types.is_temporal(field.type)]
        for batch in opened.iter_batches(batch_size=ROWS, columns=wanted):
            for values in batch.to_pylist():
                row += 1
                for column in labels.keys() & values.keys():
                    values[column] = class_label(labels[column], values[column])
                yield Record(f"{source.name}, row {row}", dict.fromkeys(schema.names) | values)
    except UnicodeDecodeError:
        raise DataError(f"{source.name}, row {row + 1} or one behind it: not UTF-8") from None
    except (pyarrow.ArrowException, OSError) as problem:
        raise DataError(f"{source.name} is no intact Parquet file: {first_line(problem)}") from None


def class_label(names: list[str], number: int | list[Any] | None) -> str | list[Any] | None:
    """The name of a class by its number, or those of a list; another number, such as -1, stands for
    none.
    """
    if isinstance(number, list):
        return [class_label(names, each) for each in number]
    return None if number is None else dict(enumerate(names)).get(number)


def _class_labels(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> names of its classes, as the datasets library writes them down."""
    if _WRITTEN_BY not in metadata:
        return {}
    try:
        features = json.loads(metadata[_WRITTEN_BY])["info"]["features"]
        single = {column: feature.get("feature", feature) for column, feature in features.items()}
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in single.items()
            if feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):  # somebody else's
        return {}
