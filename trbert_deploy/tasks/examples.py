"""Records as a model takes them, and which of them belong together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

#: A text, or a pair of them.
Text = str | tuple[str, str] | list[str]
#: A text with a list of others, such as a query with its passages (see ``Task.divided``).
TextList = tuple[str, list[str]]


@dataclass(frozen=True)
class Example:
    """A record as a model takes it.

    Attributes:
        target: as the record has it, None where it has none.
        name: what errors call it.
    """

    text: Text
    target: Any = None
    name: str = field(default="", compare=False)


#: Fewer units than these cannot be divided into parts.
FEWEST_UNITS = 10


def shuffled_units(examples: Sequence[Example], seed: int) -> list[list[int]]:
    """Indices of examples in random order, those together that must not be divided.

    These are the pairs of one first text: the passages of a query are ranked together, and of a
    premise that was learned from, another hypothesis is no new text. Of fewer than ``FEWEST_UNITS``
    such units none could be held out, and examples stand for themselves.
    """
    units: dict[Any, list[int]] = {}
    for place, example in enumerate(examples):
        key = place if isinstance(example.text, str) else example.text[0]
        units.setdefault(key, []).append(place)
    enough = len(units) >= FEWEST_UNITS
    shuffled = list(units.values()) if enough else [[place] for place in range(len(examples))]
    random.Random(seed).shuffle(shuffled)
    return shuffled
