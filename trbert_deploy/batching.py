"""Groups rows of similar length, so that little is padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Padding:
    """How much padding it is worth that rows of different lengths run together.

    Attributes:
        share: highest share of a group's slots that may be padding.
        slots: what a call of its own costs, besides its slots: where a longer row pads all of a
            group by no more, it joins.
    """

    share: float = 0.0
    slots: int = 0


#: Groups of rows of one length.
NO_PADDING = Padding()


def group_by_length(
    lengths: Sequence[int] | NDArray[np.int64], max_tokens: int, padding: Padding
) -> list[NDArray[np.int64]]:
    """Split rows into groups that run as one batch each.

    Rows are taken in ascending length (equal ones in their given order); a group closes when
    one more row would make it larger than ``max_tokens`` slots or cost more padding than that is
    worth. A row longer than ``max_tokens`` runs alone.

    Args:
        lengths: tokens per row.
        max_tokens: slots (rows times longest row) in a group.
        padding: what it may cost; ``NO_PADDING`` groups only rows of equal length.

    Returns:
        Row indices of each group, int64; together each row exactly once.
    """
    lengths = np.asarray(lengths)
    groups: list[NDArray[np.int64]] = []
    members: list[int] = []
    used = longest = 0
    for row in np.argsort(lengths, kind="stable"):
        length = int(lengths[row])
        slots = (len(members) + 1) * length
        cheap = len(members) * (length - longest) <= padding.slots
        few = used + length >= (1.0 - padding.share) * slots
        if members and (slots > max_tokens or not (cheap or few)):
            groups.append(np.array(members))
            members, used = [], 0
        members.append(int(row))
        used, longest = used + length, length
    if members:
        groups.append(np.array(members))
    return groups


def split_by_tokens(
    lengths: Sequence[int] | NDArray[np.int64], max_tokens: int
) -> list[NDArray[np.int64]]:
    """Split rows, in ascending length, into parts of at most ``max_tokens`` tokens each.

    Args:
        lengths: tokens per row.
        max_tokens: a longer row is a part of its own.

    Returns:
        Row indices of each part, int64; together each row exactly once.
    """
    if len(lengths) == 1:
        return [np.zeros(1, np.int64)]
    lengths = np.asarray(lengths)
    parts: list[NDArray[np.int64]] = []
    order = np.argsort(lengths, kind="stable")
    while len(order):
        fitting = int(np.searchsorted(np.cumsum(lengths[order]), max_tokens, side="right"))
        parts.append(order[: max(fitting, 1)])
        order = order[max(fitting, 1) :]
    return parts
