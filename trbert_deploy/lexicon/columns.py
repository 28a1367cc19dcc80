"""What the matches in a row say of each of its tokens, as a graph takes it.

A token has few slots. A match takes the same slot at all of its tokens, and says at each its tag
and how many of its tokens come before and after: this stays true when other tokens are dropped,
since those of a match are all kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Matches that a token may be part of; the longest ones where there are more.
SLOTS = 4
#: What a slot says: the number of the tag from 1 on (0 for no match), and the tokens of the match
#: before this one, and after it. In training whether it is right (1), not (0), or nobody knows
#: (-1), too.
TAG, BEFORE, AFTER, RIGHT = range(4)
#: Values of a slot where nobody learns.
VALUES = 3

#: [S, SLOTS, VALUES] int64, or with ``RIGHT`` [S, SLOTS, VALUES + 1].
Columns = NDArray[np.int64]


class Place(NamedTuple):
    """Where a match stands in a row of tokens.

    Attributes:
        first, last: places of its first and last token.
        tag: number of its tag, from 1 on.
        right: whether it is what the text's labels say; None where that is not known.
    """

    first: int
    last: int
    tag: int
    right: bool | None = None


def columns(places: Iterable[Place], length: int, values: int = VALUES) -> Columns:
    """What matches say of the tokens of a row.

    Args:
        places: within the row. Where there is no slot left at all tokens of one, it is left out;
            longer ones come first.
        length: S.
        values: of a slot: ``VALUES``, or one more in training.
    """
    found = np.zeros((length, SLOTS, values), np.int64)
    for place in sorted(places, key=lambda each: (each.first - each.last, each)):
        own = slice(place.first, place.last + 1)
        (free,) = np.nonzero(~found[own, :, TAG].any(axis=0))
        if not len(free):
            continue
        tokens = place.last - place.first
        found[own, free[0], TAG] = place.tag
        found[own, free[0], BEFORE] = np.arange(tokens + 1)
        found[own, free[0], AFTER] = np.arange(tokens, -1, -1)
        if values > RIGHT:
            found[own, free[0], RIGHT] = -1 if place.right is None else place.right
    return found


def matched(found: Columns) -> NDArray[np.bool_]:
    """Which tokens are part of a match: [S]."""
    return np.asarray(found[..., TAG].any(axis=-1), np.bool_)


def part_of(found: Columns, places: NDArray[np.int64]) -> Columns:
    """What is left of them in a part of a row: matches that are whole in it.

    Args:
        places: [W] ascending, of the part's tokens in the row.
    """
    part = found[places]
    first = places[:, None] - part[..., BEFORE]
    last = places[:, None] + part[..., AFTER]
    whole = np.isin(first, places) & np.isin(last, places)
    whole &= np.searchsorted(places, last) - np.searchsorted(places, first) == last - first
    return part * whole[..., None]
