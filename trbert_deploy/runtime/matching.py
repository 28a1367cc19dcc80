"""Matches of a lexicon in texts, brought to the tokens that stand for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import numpy as np

from trbert_deploy.lexicon.columns import VALUES, Place, columns, matched
from trbert_deploy.lexicon.matcher import Match
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.tasks.tokens import letters_of

#: Of the tokens of rows that nobody searched, one in so many begins a match.
_RANDOM_STEP = 16
_RANDOM_LENGTHS = (1, 2, 3)


def with_matches(
    row: TokenRow,
    encoding: Any,
    text: str,
    matches: Iterable[Match],
    tags: Sequence[str],
    right: AbstractSet[Match] | None = None,
    values: int = VALUES,
) -> TokenRow:
    """A row whose tokens know of the matches that they are part of, and are protected if they are.

    Args:
        encoding: of the text; a match whose ends are no ends of tokens is left out.
        matches: in the text.
        tags: of the model, in its order.
        right: those that the text's labels say, where it has any and somebody learns from them.
        values: as ``columns`` takes them.
    """
    numbers = {tag: number for number, tag in enumerate(tags, start=1)}
    places = _places(encoding, text, matches, numbers, right)
    found = columns(places, len(row), values)
    return replace(row, matches=found, protected=row.protected | matched(found))


def _places(
    encoding: Any,
    text: str,
    matches: Iterable[Match],
    numbers: dict[str, int],
    right: AbstractSet[Match] | None,
) -> list[Place]:
    tokens, starts, ends = letters_of(encoding, text)
    found = []
    for match in matches:
        first = int(np.searchsorted(starts, match.start))
        last = int(np.searchsorted(ends, match.end, side="right")) - 1
        if first > last:
            continue
        cut_before = first > 0 and ends[first - 1] > match.start
        cut_behind = last + 1 < len(starts) and starts[last + 1] < match.end
        if not cut_before and not cut_behind:
            is_right = None if right is None else match in right
            own = (int(tokens[first]), int(tokens[last]))
            found.append(Place(*own, numbers[match.tag], is_right))
    return found


def with_random_matches(rows: Sequence[TokenRow], tags: int) -> list[TokenRow]:
    """Rows that nobody searched, with some matches in them, the same ones at every call.

    Args:
        tags: how many the model knows; of none rows stay as they are.
    """
    return [_with_random_matches(row, tags) for row in rows] if tags else list(rows)


def _with_random_matches(row: TokenRow, tags: int) -> TokenRow:
    rng = np.random.default_rng(len(row))
    places = [
        Place(first, min(first + int(rng.choice(_RANDOM_LENGTHS)), len(row)) - 1, tag)
        for first in range(1, len(row), _RANDOM_STEP)
        for tag in rng.integers(1, tags + 1, 2).tolist()
    ]
    found = columns(places, len(row))
    return replace(row, matches=found, protected=row.protected | matched(found))
