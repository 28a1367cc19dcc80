"""Labels as data has them: names, or the numbers of a model's classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from trbert_deploy.errors import DataError, few
from trbert_deploy.tasks.columns import require_unicode

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def label_name(label: Any, name: str) -> str | None:
    """A record's label as a name; None where it has none.

    Args:
        name: what errors call the record.

    Raises:
        DataError: it is no single value, or no valid Unicode.
    """
    if isinstance(label, list | tuple | dict):
        kind = "an object" if isinstance(label, dict) else "a list"
        raise DataError(
            f"{name}: the label is {kind}: expected one name or number, since several labels of a "
            "text are not supported"
        )
    if label is None:
        return None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    told = str(label).strip()
    require_unicode(told, name)
    return None if told.casefold() in ("", "nan") else told


def place_of(label: str, names: Sequence[str]) -> int | None:
    """The index of a label among a model's, or None for one that it does not know.

    It is known by its name, or by its number: of a model whose names are numbers, that with the
    same value, and of any other the model's id.
    """
    if label in names:
        return names.index(label)
    number = _number(label)
    if number is None:
        return None
    numbers = [_number(name) for name in names]
    if any(each is not None for each in numbers):
        return numbers.index(number) if number in numbers else None
    return int(number) if number in range(len(names)) else None


def require_classes(labels: Sequence[str], what: str = "the labels are") -> None:
    """Refuse real values, which are no classes.

    Raises:
        DataError: there are some.
    """
    numbers = ((label, _number(label)) for label in labels)
    real = [label for label, number in numbers if number is not None and number % 1]
    if real:
        raise DataError(
            f"{what} {few(real, 3)}: real values are the targets of a regression, which is not "
            "supported; expected names of classes, or whole numbers"
        )


def _number(label: str) -> float | None:
    """The value of a label that is written as a decimal number."""
    return float(label) if _NUMBER.fullmatch(label) else None
