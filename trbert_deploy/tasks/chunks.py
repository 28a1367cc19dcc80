"""Entities of a row of tags, and how many of them two rows share.

Tags are in one of the schemes IO, BIO and BIOES, of which no strict form is asked, as conlleval and
seqeval (in its default mode) take them: an ``I-`` behind a tag of another type begins an entity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

#: No part of an entity.
OUTSIDE = "O"
#: How a tag says where in an entity it stands, and of which type that is; None outside of all.
Tag = tuple[str, str] | None
#: Type, first place and last place.
Chunk = tuple[str, int, int]

#: The letters of the schemes; those of BILOU and BMES stand for the others.
_LETTERS = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I"}


def parsed(label: str) -> Tag:
    """A label as a tag; one without a scheme's letter is a type by itself, inside an entity."""
    if label == OUTSIDE:
        return None
    letter, dash, kind = label.partition("-")
    return (_LETTERS[letter], kind) if dash and letter in _LETTERS else ("I", label)


def chunks(tags: Iterable[Tag]) -> set[Chunk]:
    """The entities of a row of tags."""
    found: set[Chunk] = set()
    before: Tag = None
    start = last = 0
    for place, tag in enumerate(tags):
        if before is not None and (tag is None or _begins(before, tag)):
            found.add((before[1], start, place - 1))
        if tag is not None and (before is None or _begins(before, tag)):
            start = place
        before, last = tag, place
    if before is not None:
        found.add((before[1], start, last))
    return found


def _begins(before: tuple[str, str], tag: tuple[str, str]) -> bool:
    """Whether a tag behind another one begins an entity of its own."""
    return before[1] != tag[1] or before[0] in "ES" or tag[0] in "BS"


def shared(ours: set[Chunk], theirs: set[Chunk]) -> tuple[int, int, int]:
    """How many entities both have, and each."""
    return len(ours & theirs), len(ours), len(theirs)


def f1(counts: Sequence[float] | NDArray[np.float64]) -> float:
    """Harmonic mean of precision and recall, of ``shared``; 0 where neither has an entity."""
    both, ours, theirs = counts
    return float(2 * both / (ours + theirs)) if ours + theirs else 0.0
