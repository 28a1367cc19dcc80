"""Several labels, and numbers, instead of one label: what answers and figures mean."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import tiny_spec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from trbert_deploy.errors import ConfigError, DataError, OutputError
from trbert_deploy.modeling.heads.multi_label import MultiLabelHead
from trbert_deploy.modeling.heads.registry import build_head
from trbert_deploy.modeling.heads.regression import RegressionHead
from trbert_deploy.tasks.columns import Columns
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.multi_label import MultiLabelClassification
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.regression import Regression
from trbert_deploy.tasks.text_classification import (
    LOGITS,
    MULTI_LABEL,
    ONE_NUMBER,
    REGRESSION,
    TextClassification,
)

LABELS = ("cold", "warm", "wet")
ENCODING: Any = SimpleNamespace(ids=[1, 2, 3])
logits = arrays(np.float32, (3,), elements=st.floats(-20, 20, width=32))
rows_of_logits = arrays(np.float32, st.tuples(st.integers(1, 12), st.just(3)),
                        elements=st.floats(-3, 3, width=32))  # fmt: skip


def outputs(*values: float) -> dict[str, np.ndarray]:
    return {LOGITS: np.array(values, np.float32)}


def read(label: object) -> Example:
    record = {"text": "a text", "label": label}
    return TextClassification.read(record, "line 1", Columns(label="label"))


# Several labels


def test_labels_count_from_their_thresholds_on() -> None:
    task = MultiLabelClassification(LABELS, {"warm": 0.9})
    prediction = task.decode(outputs(0.1, 2.0, -1.0), ENCODING)
    assert prediction.labels == ("cold",)
    assert (prediction.label, prediction.score) == ("warm", pytest.approx(0.880797))
    assert prediction.scores["wet"] == pytest.approx(0.268941, abs=1e-5)
    assert task.summary(prediction) == "cold"
    assert task.summary(task.decode(outputs(-1, -1, -1), ENCODING)) == "none"
    with pytest.raises(OutputError, match="nan"):
        task.decode(outputs(math.nan, 0, 0), ENCODING)


@pytest.mark.parametrize("thresholds", [{"hot": 0.5}, {"warm": 1.0}, {"warm": 0.0}])
def test_thresholds_that_mean_nothing(thresholds: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected a probability between 0 and 1 for one of cold"):
        MultiLabelClassification(LABELS, thresholds)


@pytest.mark.parametrize("thresholds", [[0.5], {"warm": "high"}, {"warm": None}, 0.5])
def test_thresholds_of_a_wrong_kind(thresholds: Any) -> None:
    spec = tiny_spec(answers={"problem": MULTI_LABEL, "label_thresholds": thresholds})
    with pytest.raises(ConfigError, match="label_thresholds is"):
        task_of(spec)


@given(rows_of_logits, st.integers(0, 1000))
def test_measures_are_those_of_scikit_learn(values: np.ndarray, seed: int) -> None:
    task = MultiLabelClassification(LABELS)
    values = values.round(2)
    truth = (np.random.default_rng(seed).random(values.shape) < 0.4).astype(np.float32)
    given_ = [{LOGITS: row} for row in values]
    found = task.metrics(given_, truth)
    decided = values >= 0
    met = np.flatnonzero(decided.any(axis=0) | truth.any(axis=0))
    if len(met):
        expected = f1_score(truth, decided, average="macro", labels=met, zero_division=0)
        assert found["macro_f1"] == pytest.approx(expected)
        expected = f1_score(truth, decided, average="micro", zero_division=0)
        assert found["micro_f1"] == pytest.approx(expected)
    assert found["exact_match"] == pytest.approx(accuracy_score(truth, decided))
    of_labels = [average_precision_score(*label) for label in zip(truth.T, values.T, strict=True)
                 if label[0].any()]  # fmt: skip
    assert found["average_precision"] == pytest.approx(np.mean(of_labels or [0.0]))
    assert task.measure == next(iter(found))


@given(logits, logits)
def test_divergence_is_the_mean_of_the_labels_own(one: np.ndarray, other: np.ndarray) -> None:
    found = MultiLabelClassification(LABELS).divergence({LOGITS: one}, {LOGITS: other})
    teacher, student = (torch.from_numpy(each).double() for each in (one, other))
    wanted = teacher.sigmoid()
    expected = binary_cross_entropy_with_logits(student, wanted)
    expected -= binary_cross_entropy_with_logits(teacher, wanted)
    assert found >= 0.0
    assert found == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("one", "other", "agreement"),
    [
        ((1, 1, -1), (2, 3, -4), 1.0),
        ((1, 1, -1), (1, -1, -1), 0.5),
        ((1, -1, -1), (-1, 1, -1), 0.0),
        ((-1, -1, -1), (-1, -1, -1), 1.0),
        ((math.nan, 1, 1), (1, 1, 1), 0.0),
    ],
)
def test_answers_agree_by_the_labels_of_either(
    one: tuple[float, ...], other: tuple[float, ...], agreement: float
) -> None:
    task = MultiLabelClassification(LABELS)
    assert task.agreement(outputs(*one), outputs(*other)) == agreement


@pytest.mark.parametrize(
    ("label", "row"),
    [
        (["warm", "wet"], [0, 1, 1]),
        ([2, "cold"], [1, 0, 1]),
        ([], [0, 0, 0]),
        ("warm", [0, 1, 0]),
        (json.dumps(["wet"]), [0, 0, 1]),
    ],
)
def test_lists_of_labels_are_read(label: object, row: list[int]) -> None:
    task = MultiLabelClassification(LABELS)
    assert task.targets([read(label)]).tolist() == [row]


def test_targets_of_several_labels_that_are_refused() -> None:
    task = MultiLabelClassification(LABELS)
    with pytest.raises(DataError, match="line 1: the model does not know the label 'hot'"):
        task.targets([read(["cold", "hot"])])
    with pytest.raises(DataError, match='expected a field "label"'):
        task.targets([read(None)])
    with pytest.raises(DataError, match="line 1 has a list of labels: expected one, as the model"):
        TextClassification(LABELS).targets([read(["cold"])])


# Numbers


@given(rows_of_logits, st.integers(0, 1000))
def test_correlations_are_those_of_scipy(values: np.ndarray, seed: int) -> None:
    task = Regression(ONE_NUMBER)
    truth = np.random.default_rng(seed).integers(0, 4, (len(values), 1)).astype(np.float32)
    column = np.round(values[:, :1], 1)
    found = task.metrics([{LOGITS: row} for row in column], truth)
    spread = len({*column[:, 0].tolist()}) > 1 and len({*truth[:, 0].tolist()}) > 1
    for name, theirs in (("spearman", scipy.stats.spearmanr), ("pearson", scipy.stats.pearsonr)):
        expected = theirs(column[:, 0].astype(float), truth[:, 0]).statistic if spread else 0.0
        assert found[name] == pytest.approx(expected, abs=1e-5)
    assert found["mean_squared_error"] == pytest.approx(
        float(np.square(column.astype(float) - truth).mean()), rel=1e-6
    )


def test_numbers_are_answered_as_they_are() -> None:
    task = Regression(ONE_NUMBER)
    prediction = task.decode(outputs(2.5), ENCODING)
    assert (prediction.score, prediction.scores) == (2.5, {"LABEL_0": 2.5})
    assert task.summary(prediction) == "2.5"
    assert task.agreement(outputs(2.5), outputs(2.5)) == 1.0
    assert task.agreement(outputs(4.0), outputs(3.0)) == 0.75
    assert task.agreement(outputs(0.1), outputs(5.1)) == pytest.approx(1 - 5 / 5.1)
    assert task.agreement(outputs(math.inf), outputs(1.0)) == 0.0
    assert task.divergence(outputs(1.0), outputs(3.0)) == 4.0


def test_targets_that_are_no_numbers() -> None:
    task = Regression(ONE_NUMBER)
    assert task.targets([read(0.5), read("3"), read([1.5])]).tolist() == [[0.5], [3.0], [1.5]]
    for label in ("good", "inf", "1e999"):
        with pytest.raises(DataError, match=f"line 1: the label is '{label}': expected a number"):
            task.targets([read(label)])
    with pytest.raises(DataError, match="line 1 has 2 labels: expected 1"):
        task.targets([read([1, 2])])
    with pytest.raises(DataError, match="expected a number"):
        task.require_names(["good"], "model")


# Which of them it is


@pytest.mark.parametrize(
    ("labels", "head"),
    [
        (("a", "b", "a"), (("a", "b"), {}, ("a", "b"))),
        ((["a"], [], ["b", "c"]), (("a", "b", "c"), {"problem": MULTI_LABEL}, ("a", "b", "c"))),
        ((0.5, 1, 2.25), (ONE_NUMBER, {"problem": REGRESSION}, ("0.5", "1", "2.25"))),
        ((0, 1, 2), (("0", "1", "2"), {}, ("0", "1", "2"))),
    ],
)
def test_a_new_head_is_told_by_the_labels(labels: tuple[object, ...], head: Any) -> None:
    made = TextClassification.new_head([read(label) for label in labels])
    assert made.task == "text-classification"
    assert (made.labels, made.answers, made.found) == head


@pytest.mark.parametrize("labels", [("a", "a"), ([], [])])
def test_labels_that_teach_nothing(labels: tuple[object, ...]) -> None:
    with pytest.raises(DataError, match="the data has"):
        TextClassification.new_head([read(label) for label in labels])


def test_a_spec_says_which_task_and_head() -> None:
    several = tiny_spec(answers={"problem": MULTI_LABEL, "label_thresholds": {"bad": 0.3}})
    task = task_of(several)
    assert isinstance(task, MultiLabelClassification) and task.thresholds.tolist() == [0.3, 0.5]
    assert isinstance(build_head(several), MultiLabelHead)
    number = tiny_spec(answers={"problem": REGRESSION}, labels=ONE_NUMBER)
    assert isinstance(task_of(number), Regression)
    assert isinstance(build_head(number), RegressionHead)
    with pytest.raises(ConfigError, match="unknown task 'text-classification as ranking'"):
        task_of(tiny_spec(answers={"problem": "ranking"}))


# Their losses


@pytest.mark.parametrize(
    ("problem", "theirs"), [(MULTI_LABEL, binary_cross_entropy_with_logits), (REGRESSION, mse_loss)]
)
def test_losses_are_those_of_transformers(problem: str, theirs: Any) -> None:
    head = build_head(tiny_spec(answers={"problem": problem}))
    torch.manual_seed(0)
    answered, taught = {LOGITS: torch.randn(6, 2)}, {LOGITS: torch.randn(6, 2)}
    target = (torch.rand(6, 2) < 0.5).float()
    expected = float(theirs(answered[LOGITS], target))
    assert float(head.loss(answered, target).mean()) == pytest.approx(expected)
    none = torch.full((1, 2), torch.nan)
    assert head.has_target(torch.cat([target, none])).tolist() == [True] * 6 + [False]
    assert head.loss({LOGITS: answered[LOGITS][:1]}, none).tolist() == [0.0]
    assert head.correct({LOGITS: answered[LOGITS][:1]}, none).tolist() == [0.0]
    # From the teacher: nothing where answers are the same, and more the further they are away.
    assert head.loss(taught, None, taught).abs().max() < 1e-6
    assert (head.loss(answered, None, taught) > 0).all()
    with_labels = head.loss(answered, target, taught) - head.loss(answered, None, taught)
    np.testing.assert_allclose(with_labels, 0.1 * head.loss(answered, target), rtol=1e-4)
    # Two paths of three rows
    paths = head.path_loss(answered, torch.cat([target[:2], none]), {LOGITS: taught[LOGITS][:3]})
    assert paths.shape == (2, 3) and paths.isfinite().all()
    known = head.targets_or_answers(torch.cat([target[:2], none]), {LOGITS: taught[LOGITS][:3]})
    assert known[:2].equal(target[:2]) and known.isfinite().all()
