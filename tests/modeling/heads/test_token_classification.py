"""Losses of labels of tokens, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tiny_spec
from torch.nn.functional import cross_entropy

from trbert_deploy.modeling.heads.registry import build_head
from trbert_deploy.modeling.heads.token_classification import TokenClassificationHead
from trbert_deploy.tasks.task import NO_TOKEN
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.tasks.tokens import UNKNOWN

LABELS = ("O", "B-PER", "I-PER")
#: Two rows, of 4 and 3 tokens; special ones at both ends of the first.
TARGET = torch.tensor([[NO_TOKEN, 1, UNKNOWN, NO_TOKEN], [0, UNKNOWN, 2, NO_TOKEN]])


def head() -> TokenClassificationHead:
    torch.manual_seed(0)
    spec = tiny_spec(task="token-classification", labels=LABELS)
    made = build_head(spec).eval()
    assert isinstance(made, TokenClassificationHead)
    return made


def outputs(seed: int, rows: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    logits = torch.randn(rows, 4, 3) * 2
    logits[1::2, 3] = 0.0  # behind the second row's end
    return {LOGITS: logits}


def divergence(teacher: torch.Tensor, student: torch.Tensor) -> float:
    """That of one token, at a temperature of 2."""
    wanted, found = (teacher / 2).log_softmax(-1), (student / 2).log_softmax(-1)
    return 4.0 * float((wanted.exp() * (wanted - found)).sum())


def test_labels_are_learned_where_they_are_known() -> None:
    one = outputs(1)
    found = head().loss(one, TARGET)
    logits = one[LOGITS]
    first = cross_entropy(logits[0, 1:2], torch.tensor([1]))
    second = cross_entropy(logits[1, [0, 2]], torch.tensor([0, 2]))
    assert found.tolist() == pytest.approx([float(first), float(second)])
    unknown = torch.where(TARGET >= 0, UNKNOWN, TARGET)
    assert head().loss(one, unknown).tolist() == [0.0, 0.0]


def test_a_teacher_is_matched_at_all_tokens_that_count() -> None:
    student, teacher = outputs(1), outputs(2)
    one, other = teacher[LOGITS], student[LOGITS]
    expected = [
        sum(divergence(one[0, s], other[0, s]) for s in (1, 2)) / 2,
        sum(divergence(one[1, s], other[1, s]) for s in (0, 1, 2)) / 3,
    ]
    labels = head().loss(student, TARGET)
    found = head().loss(student, TARGET, teacher)
    assert found.tolist() == pytest.approx(
        [wanted + 0.1 * float(label) for wanted, label in zip(expected, labels, strict=True)]
    )
    unknown = torch.where(TARGET >= 0, UNKNOWN, TARGET)
    assert head().loss(student, unknown, teacher).tolist() == pytest.approx(expected)
    # without targets, all tokens of each row
    expected = [
        sum(divergence(one[0, s], other[0, s]) for s in range(4)) / 4,
        sum(divergence(one[1, s], other[1, s]) for s in range(3)) / 3,
    ]
    assert head().loss(student, None, teacher).tolist() == pytest.approx(expected)
    assert head().loss(teacher, unknown, teacher).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_paths_are_judged_by_the_teacher_and_the_labels() -> None:
    paths, teacher = outputs(1, 6), outputs(2)
    found = head().path_loss(paths, TARGET, teacher)
    assert found.shape == (3, 2)
    wanted = teacher[LOGITS].softmax(-1)
    for path in range(3):
        for row, places in enumerate(((1, 2), (0, 1, 2))):
            losses = []
            for place in places:
                label, goal = int(TARGET[row, place]), wanted[row, place].clone()
                if label >= 0:
                    goal = (goal + torch.eye(3)[label]) / 2
                logits = paths[LOGITS][2 * path + row, place]
                losses.append(-float((goal * logits.log_softmax(-1)).sum()))
            assert float(found[path, row]) == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    alone = head().path_loss(paths, None, teacher)
    unknown = torch.tensor([[UNKNOWN] * 4, [UNKNOWN] * 3 + [NO_TOKEN]])
    assert torch.allclose(alone, head().path_loss(paths, unknown, teacher))


def test_what_is_right_and_what_is_answered() -> None:
    made, one = head(), outputs(1)
    answers = one[LOGITS].argmax(-1)
    target = TARGET.clone()
    target[1, 0], target[1, 2] = answers[1, 0], (answers[1, 2] + 1) % 3
    target[0, 1] = answers[0, 1]
    assert made.correct(one, target).tolist() == [1.0, 0.5]
    nothing = torch.where(TARGET >= 0, UNKNOWN, TARGET)
    assert made.correct(one, nothing).tolist() == [0.0, 0.0]
    assert made.has_target(torch.stack([TARGET[0], nothing[1]])).tolist() == [True, False]
    expected = torch.where(TARGET == NO_TOKEN, NO_TOKEN, answers)
    assert torch.equal(made.answers(one, TARGET), expected)
    mixed = torch.stack([TARGET[0], nothing[1]])
    found = made.targets_or_answers(mixed, one)
    assert torch.equal(found, torch.stack([TARGET[0], expected[1]]))


def test_gradients_are_numbers() -> None:
    student = {LOGITS: outputs(1)[LOGITS].requires_grad_()}
    nothing = torch.full_like(TARGET, NO_TOKEN)
    for target in (TARGET, nothing):
        head().loss(student, target, outputs(2)).sum().backward()
        head().loss(student, target).sum().backward()
        head().path_loss(student, target, outputs(2)).sum().backward()
    assert student[LOGITS].grad is not None
    assert math.isfinite(float(student[LOGITS].grad.abs().sum()))
    assert (student[LOGITS].grad[TARGET == NO_TOKEN] == 0).all()
