"""Which places of two texts belong together, given how alike each two of them are.

The three methods of SimAlign (Jalili Sabet et al. 2020). Each takes cosines [M, N] and gives links
[M, N], bool; texts of no place have no links.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Links = NDArray[np.bool_]
Method = Callable[[NDArray[np.float32]], Links]

#: What the similarity of a place counts that has a partner already, of one that has none.
TAKEN_COUNTS = 0.9
#: Rounds of the iterative maximum, the first one included.
ROUNDS = 2


def mutual_argmax(similarity: NDArray[np.floating]) -> Links:
    """Places that are each other's most similar ones, of equal ones the first: [M, N] bool.

    No place has two partners. With the texts exchanged the links are the same.
    """
    links: Links = np.zeros(similarity.shape, np.bool_)
    if similarity.size:
        rows = np.arange(len(similarity))
        best = similarity.argmax(axis=1)
        links[rows, best] = similarity.argmax(axis=0)[best] == rows
    return links


def iterative_maximum(similarity: NDArray[np.floating], rounds: int = ROUNDS) -> Links:
    """Mutual argmax, once more for the places that it left without a partner ("itermax").

    In a later round a place may get a second partner, where only one of the two has one yet: what
    is similar counts ``TAKEN_COUNTS`` then, and nothing where both have one. Similarities are
    moved to 0 to 1 first, so that less of it never counts more. Of texts of one or two places, and
    once one text has no place left, the first round is all.
    """
    links = mutual_argmax(similarity)
    if min(similarity.shape) <= 2:
        return links
    likeness = (1.0 + similarity) / 2.0
    for _ in range(rounds - 1):
        sources = links.any(axis=1, keepdims=True)
        targets = links.any(axis=0, keepdims=True)
        if sources.all() or targets.all():
            break
        both = sources & targets
        weights = np.where(both, 0.0, np.where(sources | targets, TAKEN_COUNTS, 1.0))
        found = mutual_argmax(likeness * weights) & ~both
        if not found.any():
            break
        links = links | found
    return links


def optimal_matching(similarity: NDArray[np.floating]) -> Links:
    """One partner for every place of the shorter text, at the largest sum of similarities."""
    from scipy.optimize import linear_sum_assignment  # which the other methods do without

    links: Links = np.zeros(similarity.shape, np.bool_)
    links[linear_sum_assignment(similarity, maximize=True)] = True
    return links


#: Name -> method.
METHODS: dict[str, Method] = {
    "mutual": mutual_argmax,
    "itermax": iterative_maximum,
    "matching": optimal_matching,
}
