"""Matches as columns of tokens: what is written can be read off again, in parts of rows, too."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.lexicon.columns import (
    AFTER,
    BEFORE,
    RIGHT,
    SLOTS,
    TAG,
    VALUES,
    Columns,
    Place,
    columns,
    matched,
    part_of,
)

LENGTH = 20
PLACES = st.lists(
    st.tuples(st.integers(0, LENGTH - 1), st.integers(1, 6), st.integers(1, 3)).map(
        lambda each: Place(each[0], min(each[0] + each[1], LENGTH) - 1, each[2])
    ),
    max_size=12,
    unique=True,
)


def read(found: Columns) -> list[tuple[int, int, int]]:
    """The matches that columns tell of, each from its first token on."""
    told = []
    for slot in range(SLOTS):
        for place in range(len(found)):
            tag, before, after = found[place, slot, :VALUES].tolist()
            if tag and not before:
                told.append((place, place + after, tag))
                own = found[place : place + after + 1, slot]
                assert (own[:, TAG] == tag).all()
                assert own[:, BEFORE].tolist() == list(range(after + 1))
                assert own[:, AFTER].tolist() == list(range(after, -1, -1))
    return sorted(told)


@given(PLACES)
def test_matches_are_told_whole_or_not_at_all(places: list[Place]) -> None:
    found = columns(places, LENGTH)
    told = read(found)
    assert {*told} <= {(first, last, tag) for first, last, tag, _ in places}
    assert len(told) == len({*told})
    assert int((found[..., TAG] > 0).sum()) == sum(last - first + 1 for first, last, _ in told)
    covered = {token for first, last, _ in told for token in range(first, last + 1)}
    assert set(matched(found).nonzero()[0].tolist()) == covered
    deepest = max((sum(p.first <= t <= p.last for p in places) for t in range(LENGTH)), default=0)
    if deepest <= 1:
        assert len(told) == len(places)


def test_the_longest_ones_have_the_slots() -> None:
    places = [Place(0, last, 1) for last in range(SLOTS + 2)]
    assert read(columns(places, LENGTH)) == [(0, last, 1) for last in range(2, SLOTS + 2)]


def test_whether_they_are_right_stands_beside_them() -> None:
    places = [Place(1, 2, 1, True), Place(4, 4, 2, False), Place(6, 6, 1)]
    found = columns(places, 8, VALUES + 1)
    assert found[[1, 2, 4, 6], 0, RIGHT].tolist() == [1, 1, 0, -1]


@given(PLACES, st.integers(0, LENGTH - 1), st.integers(1, LENGTH))
def test_a_part_has_the_matches_that_are_whole_in_it(
    places: list[Place], start: int, size: int
) -> None:
    found = columns(places, LENGTH)
    inner = np.arange(start, min(start + size, LENGTH))
    # As windows are: the first token of the row, a slice, and its last one.
    window = np.unique(np.concatenate([[0], inner, [LENGTH - 1]]))
    told = {
        (int(window[first]), int(window[last]), tag)
        for first, last, tag in read(part_of(found, window))
    }
    assert told == {
        each for each in read(found) if {*range(each[0], each[1] + 1)} <= {*window.tolist()}
    }
