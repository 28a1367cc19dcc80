"""Recombined rows: parts of two training rows, labelled by the teacher alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import softmax

from trbert_deploy.errors import DataError
from trbert_deploy.modeling.walk import dense_outputs
from trbert_deploy.progress import no_progress
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.text_classification import LOGITS, NO_TARGET, TextClassification
from trbert_deploy.tasks.token_classification import TokenClassification
from trbert_deploy.training.batches import load_batches
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.recombining import recombine, require_recombinable
from trbert_deploy.training.stages.guide import answers, make_guide

CPU = torch.device("cpu")
TASK = TextClassification(("neg", "pos"))


def rows_of(*lengths: int) -> list[TrainingRow]:
    """Rows whose every token but the first and the last says where it stood: 100 * row + place."""
    rows = []
    for number, length in enumerate(lengths):
        ids = 100 * number + np.arange(length)
        ids[0], ids[-1] = 2, 3
        rows.append(TrainingRow(TokenRow(ids, np.zeros_like(ids)), number % 2))
    return rows


def runs_in(ids: np.ndarray) -> list[np.ndarray]:
    """Tokens that stood one behind the other in one row."""
    broken = (np.diff(ids) != 1) | (ids[1:] // 100 != ids[:-1] // 100)
    return [run for run in np.split(ids, np.flatnonzero(broken) + 1) if len(run)]


@given(
    st.lists(st.integers(2, 99), min_size=1, max_size=6),
    st.integers(0, 12),
    st.integers(0, 1000),
)
def test_parts_of_at_most_two_rows_between_the_special_tokens(
    lengths: list[int], count: int, seed: int
) -> None:
    made = recombine(rows_of(*lengths), count, seed, TASK)
    assert len(made) == count
    for row in made:
        ids = row.tokens.input_ids
        assert (ids[0], ids[-1]) == (2, 3) and ids.dtype == np.int64
        assert 2 <= len(row) <= max(lengths)
        assert len(runs_in(ids[1:-1])) <= 2
        assert row.target == NO_TARGET and not row.tokens.token_type_ids.any()


def test_a_seed_makes_the_same_rows_again_and_another_seed_others() -> None:
    rows = rows_of(30, 40, 50)

    def made(seed: int) -> list[list[int]]:
        return [row.tokens.input_ids.tolist() for row in recombine(rows, 8, seed, TASK)]

    assert made(1) == made(1) != made(2)


def test_pairs_are_refused() -> None:
    require_recombinable([Example("one"), Example("another")], TASK)
    with pytest.raises(DataError, match="pairs of texts cannot be recombined: leave recombined"):
        require_recombinable([Example("one"), Example(("one", "another"))], TASK)
    with pytest.raises(DataError, match="texts for token-classification cannot be recombined"):
        require_recombinable([Example("one")], TokenClassification(("O", "B-PER")))


def test_without_a_label_the_teacher_alone_is_asked() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    teacher = torch.randn(4, 3)
    head = tiny_model().head
    unlabelled = head.loss({LOGITS: logits}, torch.full((4,), NO_TARGET), {LOGITS: teacher})
    (gradient,) = torch.autograd.grad(unlabelled.sum(), logits)
    # The gradient of T^2 KL(teacher || student), both softened by T = 2.
    expected = 2.0 * (softmax(logits / 2.0, -1) - softmax(teacher / 2.0, -1))
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_the_teachers_answers_follow_those_on_the_training_rows() -> None:
    model = tiny_model()
    rows = [
        TrainingRow(TokenRow(row.tokens.input_ids % 256, row.tokens.token_type_ids), row.target)
        for row in rows_of(9, 20, 14)
    ]
    new = recombine(rows, 4, 0, TASK)
    making = (64, CPU, no_progress)
    guide = make_guide(model, rows, *making)
    guide = replace(guide, answers=guide.answers + answers(model, new, *making))
    assert len(guide.answers) == 7 and len(guide.starts) == 4
    (batch,) = load_batches(rows + new, [[5, 1]], CPU)
    with torch.no_grad():
        expected = dense_outputs(model, batch)
    assert guide.outputs_of(batch).keys() == expected.keys() == {LOGITS}
    found = guide.outputs_of(batch)[LOGITS]
    assert torch.allclose(found, expected[LOGITS], rtol=0.02, atol=0.02)  # bfloat16
