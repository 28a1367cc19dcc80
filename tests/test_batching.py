from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.batching import NO_PADDING, Padding, group_by_length, split_by_tokens

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


@given(
    LENGTHS, st.integers(1, 200), st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.sampled_from([0, 9])
)
def test_each_row_once_within_the_limits(
    lengths: list[int], max_tokens: int, share: float, slots: int
) -> None:
    groups = group_by_length(lengths, max_tokens, Padding(share, slots))
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        members = [lengths[row] for row in group]
        taken = len(members) * max(members)
        assert len(members) == 1 or taken <= max_tokens
        assert slots or sum(members) >= (1 - share) * taken - 1e-9


@given(LENGTHS, st.integers(0, 40))
def test_padding_never_costs_more_than_the_calls_that_it_saves(
    lengths: list[int], call: int
) -> None:
    def cost(padding: Padding) -> int:
        """Slots, and what every call costs besides."""
        groups = group_by_length(lengths, 10**6, padding)
        return sum(len(group) * max(lengths[row] for row in group) + call for group in groups)

    assert cost(Padding(slots=call)) <= cost(NO_PADDING)


@given(LENGTHS)
def test_without_padding_groups_hold_one_length(lengths: list[int]) -> None:
    for group in group_by_length(lengths, 10**6, NO_PADDING):
        assert len({lengths[row] for row in group}) == 1


def test_equal_rows_fill_one_group_in_their_order() -> None:
    (group,) = group_by_length([7] * 5, 35, NO_PADDING)
    assert group.tolist() == [0, 1, 2, 3, 4]
    assert group.dtype == np.int64
    assert [len(group) for group in group_by_length([7] * 5, 34, NO_PADDING)] == [4, 1]


def test_many_equal_rows_keep_their_order() -> None:
    lengths = [5, 3] * 30  # more than a sort that is not stable leaves in order by chance
    for groups in (group_by_length(lengths, 10**6, NO_PADDING), split_by_tokens(lengths, 3 * 30)):
        found = np.concatenate(groups)
        assert found.tolist() == [*range(1, 60, 2), *range(0, 60, 2)]


def test_padding_up_to_the_limit_is_taken() -> None:
    share, slots = Padding(share=0.1), Padding(slots=6)
    assert [group.tolist() for group in group_by_length([8, 10], 100, share)] == [[0, 1]]
    assert [group.tolist() for group in group_by_length([7, 10], 100, share)] == [[0], [1]]
    assert [group.tolist() for group in group_by_length([7, 7, 10], 100, slots)] == [[0, 1, 2]]
    assert [group.tolist() for group in group_by_length([7, 7, 11], 100, slots)] == [[0, 1], [2]]


def test_a_part_is_filled_to_the_last_token() -> None:
    assert [part.tolist() for part in split_by_tokens([10, 20, 10], 40)] == [[0, 2, 1]]
    assert [part.tolist() for part in split_by_tokens([10, 20, 10], 39)] == [[0, 2], [1]]
    (part,) = split_by_tokens([7], 3)
    assert part.tolist() == [0] and part.dtype == np.int64


def test_a_row_above_the_limit_runs_alone() -> None:
    groups = group_by_length([100, 3], max_tokens=10, padding=Padding(share=1.0))
    assert [group.tolist() for group in groups] == [[1], [0]]


def test_no_rows_no_groups() -> None:
    assert group_by_length([], 100, Padding(0.1)) == []


@given(LENGTHS, st.integers(1, 100))
def test_parts_hold_every_row_once_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    parts = split_by_tokens(lengths, max_tokens)
    assert sorted(index for part in parts for index in part.tolist()) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or sum(lengths[index] for index in part) <= max_tokens
    ordered = [lengths[index] for part in parts for index in part]
    assert ordered == sorted(lengths)
