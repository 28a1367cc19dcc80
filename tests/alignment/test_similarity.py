"""States of groups of tokens, and cosines between them."""

from __future__ import annotations

import numpy as np
import pytest

from trbert_deploy.alignment.similarity import cosine_similarity, pooled


def test_a_group_has_the_mean_of_its_tokens() -> None:
    hidden = np.array([[9.0, 9.0], [1.0, 0.0], [0.0, 3.0], [2.0, 2.0]], np.float32)
    found = pooled(hidden, [np.array([1, 2]), np.array([3])])
    assert found.tolist() == [[0.5, 1.5], [2.0, 2.0]] and found.dtype == np.float32
    assert pooled(hidden, []).shape == (0, 2)


def test_cosines_are_of_directions_alone() -> None:
    source = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]], np.float32)
    target = np.array([[5.0, 0.0], [0.0, -0.1]], np.float32)
    expected = [[1.0, 0.0], [0.5**0.5, -(0.5**0.5)], [0.0, 0.0]]  # a zero has no direction
    found = cosine_similarity(source, target)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_cosines_of_exchanged_texts_are_turned_around() -> None:
    source, target = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    found = cosine_similarity(source, target)
    np.testing.assert_allclose(found, cosine_similarity(target, source).T, atol=1e-6)
    assert np.diag(cosine_similarity(source, source)) == pytest.approx(1.0, abs=1e-6)
