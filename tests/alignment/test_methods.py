"""Alignment methods: by hand-made matrices, and what holds for any of them."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from trbert_deploy.alignment.methods import (
    METHODS,
    iterative_maximum,
    mutual_argmax,
    optimal_matching,
)

#: Cosines, with many that are equal.
matrices = st.tuples(st.integers(0, 6), st.integers(0, 6)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]))
)


def pairs_of(links: NDArray[np.bool_]) -> list[tuple[int, int]]:
    return [(int(row), int(column)) for row, column in np.argwhere(links)]


def test_mutual_argmax_links_those_that_choose_each_other() -> None:
    similarity = np.array([[0.9, 0.8, 0.1], [0.95, 0.2, 0.1], [0.0, 0.1, 0.05]])
    # Row 0 would have column 0, which would rather have row 1; row 2's column 1 has row 0.
    assert pairs_of(mutual_argmax(similarity)) == [(1, 0)]


def test_of_equal_ones_the_first_is_taken() -> None:
    assert pairs_of(mutual_argmax(np.ones((2, 3)))) == [(0, 0)]


def test_the_iterative_maximum_goes_on_with_those_that_are_left() -> None:
    similarity = np.array([[0.9, 0.1, 0.0], [0.8, 0.75, 0.1], [0.1, 0.5, 0.4]])
    assert pairs_of(mutual_argmax(similarity)) == [(0, 0)]
    assert pairs_of(iterative_maximum(similarity)) == [(0, 0), (1, 1)]


def test_a_place_may_get_a_second_partner_where_the_other_has_none() -> None:
    # Column 3 is left: (1 + 0.8) / 2 * 0.9 for row 0, which has a partner, is its best.
    similarity = np.array(
        [[0.9, 0.0, 0.0, 0.8], [0.0, 0.9, 0.0, -0.9], [0.3, 0.3, 0.2, -0.9]], np.float32
    )
    assert pairs_of(mutual_argmax(similarity)) == [(0, 0), (1, 1)]
    assert pairs_of(iterative_maximum(similarity)) == [(0, 0), (0, 3), (1, 1), (2, 2)]


def test_what_counts_less_counts_less_even_below_zero() -> None:
    """A product with 0.9 would bring a negative cosine nearer to 1."""
    similarity = np.array([[0.9, -0.50, -0.9], [-0.9, -0.52, -0.9], [-0.9, -0.9, -0.95]])
    found = pairs_of(iterative_maximum(similarity))
    assert (0, 1) not in found and (1, 1) in found


def test_rounds_go_on_until_nothing_is_found() -> None:
    similarity = np.diag([0.9, 0.8, 0.7, 0.6]) + 0.1
    assert np.array_equal(iterative_maximum(similarity, 1), mutual_argmax(similarity))
    many = np.random.default_rng(3).normal(size=(9, 9))
    counts = [int(iterative_maximum(many, rounds).sum()) for rounds in (1, 2, 3, 9, 50)]
    assert counts == sorted(counts) and counts[0] < counts[1]
    assert np.array_equal(iterative_maximum(many, 50), iterative_maximum(many, 51))


def test_texts_of_one_or_two_places_have_one_round() -> None:
    similarity = np.array([[0.9, 0.8, 0.7], [0.1, 0.2, 0.3]])
    assert np.array_equal(iterative_maximum(similarity), mutual_argmax(similarity))


def test_the_optimal_matching_gives_up_the_best_for_the_sum() -> None:
    similarity = np.array([[0.9, 0.8], [0.85, 0.1]])
    assert pairs_of(mutual_argmax(similarity)) == [(0, 0)]
    assert pairs_of(optimal_matching(similarity)) == [(0, 1), (1, 0)]


@given(matrices)
def test_no_method_depends_on_which_text_is_the_first(similarity: NDArray[np.float32]) -> None:
    for method in (mutual_argmax, iterative_maximum):
        assert np.array_equal(method(similarity.T), method(similarity).T)
    both = optimal_matching(similarity), optimal_matching(similarity.T).T
    assert len({float(similarity[links].sum()) for links in both}) == 1  # of equal ones any


@given(matrices)
def test_mutual_argmax_gives_nobody_two_partners(similarity: NDArray[np.float32]) -> None:
    links = mutual_argmax(similarity)
    assert max(links.sum(axis=0), default=0) <= 1 and max(links.sum(axis=1), default=0) <= 1
    for row, column in np.argwhere(links):
        assert similarity[row, column] == similarity[row].max() == similarity[:, column].max()


@given(matrices, st.integers(1, 4))
def test_the_iterative_maximum_contains_mutual_argmax(
    similarity: NDArray[np.float32], rounds: int
) -> None:
    assert (mutual_argmax(similarity) <= iterative_maximum(similarity, rounds)).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_the_iterative_maximum_is_that_of_simalign(
    seed: int, rows: int, columns: int, rounds: int
) -> None:
    similarity = np.random.default_rng(seed).uniform(-1.0, 1.0, (rows, columns))
    assert np.array_equal(iterative_maximum(similarity, rounds), as_published(similarity, rounds))


def as_published(cosines: NDArray[np.float64], rounds: int) -> NDArray[np.bool_]:
    """The iterative maximum with matrices of zeros and ones, as SimAlign's own code has it."""
    likeness = (cosines + 1.0) / 2.0
    rows, columns = likeness.shape

    def both_ways(values: NDArray[np.float64]) -> NDArray[np.float64]:
        forward = np.eye(columns)[values.argmax(axis=1)]
        return forward * np.eye(rows)[values.argmax(axis=0)].T

    links = both_ways(likeness)
    if min(rows, columns) <= 2:
        return links.astype(np.bool_)
    for _ in range(rounds - 1):
        free_rows = 1.0 - np.tile(links.sum(1)[:, None], (1, columns)).clip(0.0, 1.0)
        free_columns = 1.0 - np.tile(links.sum(0)[None, :], (rows, 1)).clip(0.0, 1.0)
        if free_rows.sum() < 1.0 or free_columns.sum() < 1.0:
            break
        weights = (0.9 * free_rows + 0.9 * free_columns).clip(0.0, 1.0)
        either = 1.0 - (1.0 - free_rows) * (1.0 - free_columns)
        links = links + both_ways(likeness * weights) * either
    return links.astype(np.bool_)


@given(matrices)
def test_the_optimal_matching_is_a_matching_of_the_largest_sum(
    similarity: NDArray[np.float32],
) -> None:
    links = optimal_matching(similarity)
    shorter, longer = sorted(similarity.shape)
    assert links.sum() == shorter
    assert max(links.sum(axis=0), default=0) <= 1 and max(links.sum(axis=1), default=0) <= 1
    wide = similarity if similarity.shape[0] == shorter else similarity.T
    sums = (
        float(sum(wide[row, column] for row, column in enumerate(chosen)))
        for chosen in permutations(range(longer), shorter)
    )
    assert similarity[links].sum() == pytest.approx(max(sums))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_text_of_no_place_has_no_links(method) -> None:  # type: ignore[no-untyped-def]
    for shape in ((0, 0), (0, 3), (3, 0)):
        assert method(np.zeros(shape, np.float32)).shape == shape
