"""Groups rows of similar length, so that little is padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def group_by_length(
    lengths: Sequence[int] | NDArray[np.int64], max_tokens: int, max_padding: float
) -> list[NDArray[np.int64]]:
    """Split rows into groups that run as one batch each.

    Rows are taken in ascending length (equal ones in their given order); a group closes when
    one more row would make it larger than ``max_tokens`` slots or waste more than
    ``max_padding`` of its slots. A row longer than ``max_tokens`` runs alone.

    Args:
        lengths: tokens per row.
        max_tokens: slots (rows times longest row) in a group.
        max_padding: highest share of a group's slots that may be padding; 0 groups only
            rows of equal length.

    Returns:
        Row indices of each group, int64; together each row exactly once.
    """
    lengths = np.asarray(lengths)
    groups: list[NDArray[np.int64]] = []
    members: list[int] = []
    used = 0
    for row in np.argsort(lengths, kind="stable"):
        slots = (len(members) + 1) * int(lengths[row])
        full = slots > max_tokens or used + lengths[row] < (1.0 - max_padding) * slots
        if members and full:
            groups.append(np.array(members))
            members, used = [], 0
        members.append(int(row))
        used += int(lengths[row])
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
