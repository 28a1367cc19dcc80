"""Slots that are reckoned from lengths: enough for what was kept, never more than there is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.selection.capacity import MOST_SLOTS, PARTS, Capacity

LENGTHS = st.integers(1, 8192)
KEPT = st.tuples(LENGTHS, st.integers(1, MOST_SLOTS)).map(lambda pair: (max(pair), min(pair)))


@given(st.lists(KEPT, min_size=1))
def test_what_was_kept_has_room(kept: list[tuple[int, int]]) -> None:
    capacity = Capacity.of(kept)
    assert all(survivors <= capacity.slots(length) for length, survivors in kept)
    if capacity.parts:  # and no less would do
        less = Capacity(capacity.parts - 1)
        assert any(survivors > less.slots(length) for length, survivors in kept)


@given(st.integers(0, PARTS), LENGTHS)
def test_slots_grow_with_the_length_and_never_exceed_it(parts: int, length: int) -> None:
    capacity = Capacity(parts)
    assert 1 <= capacity.slots(length) <= length
    assert capacity.slots(length) <= capacity.slots(length + 1)


def test_there_are_no_more_than_tensorrt_ranks() -> None:
    assert Capacity.of([(8192, 8192)]).slots(8192) == MOST_SLOTS


def test_short_rows_keep_what_they_like() -> None:
    assert Capacity.of([(12, 12), (100, 16)]) == Capacity(0)
    assert Capacity.of([]).slots(500) == 16
