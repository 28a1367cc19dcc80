"""Labels as data has them: names, or the numbers of a model's classes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from trbert_deploy.errors import DataError, few
from trbert_deploy.tasks.columns import listed, require_unicode

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def label_target(label: Any, name: str) -> str | tuple[str, ...] | None:
    """A record's label, or its several labels; None where it has none.

    A list of them may be written in JSON, as a cell of a table has to.

    Args:
        name: what errors call the record.

    Raises:
        DataError: as ``label_name``.
    """
    label = listed(label)
    if not isinstance(label, list | tuple):
        return label_name(label, name)
    names = [label_name(each, name) for each in label]
    return tuple(each for each in names if each is not None)


def names_in(targets: Iterable[Any]) -> set[str]:
    """The labels that occur in targets, of which each is a label or several."""
    return {
        label for target in targets for label in ((target,) if isinstance(target, str) else target)
    }


def label_name(label: Any, name: str) -> str | None:
    """A record's label as a name; None where it has none.

    Args:
        name: what errors call the record.

    Raises:
        DataError: it is no single value, or no valid Unicode.
    """
    if isinstance(label, list | tuple | dict):
        kind = "an object" if isinstance(label, dict) else "a list"
        raise DataError(f"{name}: the label is {kind}: expected a name or a number")
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
            f"{what} {few(real, 3)}: real values are the targets of a regression, which this model "
            "does not answer; expected names of classes, or whole numbers"
        )


def are_numbers(labels: Sequence[str]) -> bool:
    """Whether every label is written as a number."""
    return all(_number(label) is not None for label in labels)


def is_real(label: str) -> bool:
    """Whether a label is a number, and no whole one."""
    number = _number(label)
    return number is not None and number % 1 != 0


def number_of(label: str, name: str, meaning: str = "which a regression model answers") -> float:
    """The value of a label that is a number.

    Args:
        name: what errors call its record.
        meaning: what errors say of the number.

    Raises:
        DataError: it is none.
    """
    number = _number(label)
    if number is None or not math.isfinite(number):
        raise DataError(f"{name}: the label is {label!r}: expected a number, {meaning}")
    return number


def _number(label: str) -> float | None:
    """The value of a label that is written as a decimal number."""
    return float(label) if _NUMBER.fullmatch(label) else None
