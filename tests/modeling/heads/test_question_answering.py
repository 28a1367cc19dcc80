"""Losses of where answers start and end, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tiny_spec
from torch.nn.functional import cross_entropy

from trbert_deploy.modeling.heads.question_answering import QuestionAnsweringHead
from trbert_deploy.modeling.heads.registry import build_head
from trbert_deploy.tasks.task import NO_TOKEN
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.tasks.tokens import UNKNOWN

#: [CLS] q [SEP] c c c [SEP], and one token less of a context that has no answer.
CLASS, BESIDE = 0, NO_TOKEN
TARGET = torch.tensor(
    [
        [CLASS, BESIDE, BESIDE, 1, 0, 2, BESIDE],
        [3, BESIDE, BESIDE, 0, 0, BESIDE, BESIDE],
        [UNKNOWN, BESIDE, BESIDE, UNKNOWN, UNKNOWN, UNKNOWN, BESIDE],
        [CLASS, BESIDE, BESIDE, 0, 2, 0, BESIDE],  # a window behind the start: no answer
        [CLASS, BESIDE, BESIDE, 0, 3, 0, BESIDE],
    ]
)
#: Start and end in each row; None where nobody knows.
ENDS = [(3, 5), (0, 0), None, (0, 0), (4, 4)]


def head() -> QuestionAnsweringHead:
    torch.manual_seed(0)
    made = build_head(tiny_spec(task="question-answering")).eval()
    assert isinstance(made, QuestionAnsweringHead)
    return made


def outputs(seed: int, paths: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    logits = torch.randn(5 * paths, 7, 2) * 2
    logits[1::5, 6] = 0.0  # behind the second row's end
    return {LOGITS: logits}


def places(row: int) -> list[int]:
    """The tokens that an answer may be made of."""
    return (TARGET[row] != NO_TOKEN).nonzero()[:, 0].tolist()


def label_loss(logits: torch.Tensor, row: int) -> float:
    if ENDS[row] is None:
        return 0.0
    inside = places(row)
    wanted = torch.tensor([inside.index(place) for place in ENDS[row]])
    return float(cross_entropy(logits[inside].T, wanted))


def test_starts_and_ends_are_learned_where_they_are_known() -> None:
    one = outputs(1)
    expected = [label_loss(logits, row) for row, logits in enumerate(one[LOGITS])]
    assert head().loss(one, TARGET).tolist() == pytest.approx(expected)


def test_a_teacher_is_matched_over_the_context() -> None:
    student, teacher = outputs(1), outputs(2)
    expected = []
    for row in range(5):
        one, other = (
            (each[LOGITS][row, places(row)] / 2).log_softmax(0) for each in (teacher, student)
        )
        expected.append(4.0 * float((one.exp() * (one - other)).sum(0).mean()))
    labels = [label_loss(logits, row) for row, logits in enumerate(student[LOGITS])]
    found = head().loss(student, TARGET, teacher)
    wanted = [each + 0.1 * label for each, label in zip(expected, labels, strict=True)]
    assert found.tolist() == pytest.approx(wanted)
    unknown = torch.where(TARGET == NO_TOKEN, NO_TOKEN, UNKNOWN)
    assert head().loss(student, unknown, teacher).tolist() == pytest.approx(expected)
    assert head().loss(teacher, unknown, teacher).tolist() == pytest.approx([0] * 5, abs=1e-6)
    # without targets, all tokens of a row
    alone = head().loss(student, None, teacher)
    one, other = ((each[LOGITS][1, :6] / 2).log_softmax(0) for each in (teacher, student))
    wanted_of_row = 4.0 * float((one.exp() * (one - other)).sum(0).mean())
    assert float(alone[1]) == pytest.approx(wanted_of_row)


def test_paths_are_judged_by_the_teacher_and_the_labels() -> None:
    paths, teacher = outputs(1, 3), outputs(2)
    found = head().path_loss(paths, TARGET, teacher)
    assert found.shape == (3, 5)
    for path in range(3):
        for row in range(5):
            inside = places(row)
            wanted = teacher[LOGITS][row, inside].softmax(0)
            if ENDS[row] is not None:
                label = torch.zeros_like(wanted)
                for column, place in enumerate(ENDS[row]):
                    label[inside.index(place), column] = 1.0
                wanted = (wanted + label) / 2
            logits = paths[LOGITS][5 * path + row, inside].log_softmax(0)
            expected = -float((wanted * logits).sum(0).mean())
            assert float(found[path, row]) == pytest.approx(expected, abs=1e-5)


def test_what_is_right_and_what_is_answered() -> None:
    made = head()
    logits = torch.zeros(5, 7, 2)
    for row, (start, end) in enumerate([(3, 5), (0, 5), (5, 3), (4, 5), (4, 4)]):
        logits[row, start, 0] = logits[row, end, 1] = 5.0
        logits[row, 1] = 9.0  # a token of the question, which is none of an answer
    logits[2, 5, 1] = 1.0
    one = {LOGITS: logits}
    answers = made.answers(one, TARGET)
    assert answers.tolist() == [
        [0, BESIDE, BESIDE, 1, 0, 2, BESIDE],
        [3, BESIDE, BESIDE, 0, 0, BESIDE, BESIDE],
        [0, BESIDE, BESIDE, 0, 0, 3, BESIDE],  # an end before the start is none
        [0, BESIDE, BESIDE, 0, 1, 2, BESIDE],
        [0, BESIDE, BESIDE, 0, 3, 0, BESIDE],
    ]
    assert made.correct(one, TARGET).tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]
    target = TARGET.clone()
    target[0] = torch.tensor([0, BESIDE, BESIDE, 0, 1, 2, BESIDE])
    assert made.correct(one, target)[0] == 0.5
    assert made.has_target(TARGET).tolist() == [True, True, False, True, True]
    found = made.targets_or_answers(TARGET, one)
    assert torch.equal(found[2], answers[2]) and torch.equal(found[[0, 1]], TARGET[[0, 1]])


def test_gradients_are_numbers() -> None:
    student = {LOGITS: outputs(1)[LOGITS].requires_grad_()}
    head().loss(student, TARGET, outputs(2)).sum().backward()
    head().loss(student, TARGET).sum().backward()
    head().path_loss(student, TARGET, outputs(2)).sum().backward()
    assert student[LOGITS].grad is not None
    assert math.isfinite(float(student[LOGITS].grad.abs().sum()))
    assert (student[LOGITS].grad[TARGET == NO_TOKEN] == 0).all()
