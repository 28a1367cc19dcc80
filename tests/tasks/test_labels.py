"""Labels by name and by number."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.errors import DataError
from trbert_deploy.tasks.columns import Columns
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.labels import label_name, place_of, require_classes
from trbert_deploy.tasks.text_classification import TextClassification

UNNAMED = ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("good", "good"),
        (" good ", "good"),
        (1, "1"),
        (1.0, "1"),
        ("1.0", "1.0"),
        (0.31, "0.31"),
        (True, "True"),
        *((none, None) for none in (None, "", " ", float("nan"), "nan", "NaN")),
    ],
)
def test_labels_become_names(label: object, name: str | None) -> None:
    assert label_name(label, "line 1") == name


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (["a"], "line 1: the label is a list: expected a name or a number"),
        ({"a": 1}, "line 1: the label is an object"),
        ("\udc00", "line 1 is no valid Unicode"),
    ],
)
def test_what_is_no_label_is_told(label: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        label_name(label, "line 1")


@pytest.mark.parametrize(
    ("label", "names", "place"),
    [
        ("LABEL_1", UNNAMED, 1),
        ("1", UNNAMED, 1),
        ("1.0", UNNAMED, 1),
        ("3", UNNAMED, None),
        ("-1", UNNAMED, None),
        ("1.5", UNNAMED, None),
        ("1e999", UNNAMED, None),
        ("one", UNNAMED, None),
        ("1", ("negative", "positive"), 1),
        # Where names are numbers, a number is a name and never a place.
        ("1", ("1", "2", "3"), 0),
        ("0", ("1", "2", "3"), None),
        ("1.0", ("1", "2", "3"), 0),
        ("2", ("1.0", "2.0"), 1),
        ("2.5", ("1.5", "2.5"), 1),
        ("0", ("none", "1"), None),
    ],
)
def test_labels_have_places(label: str, names: tuple[str, ...], place: int | None) -> None:
    assert place_of(label, names) == place


@given(st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_a_name_is_its_own_place(names: list[str]) -> None:
    assert [place_of(name, names) for name in names] == list(range(len(names)))


def test_real_values_are_refused_by_two_or_three_of_them() -> None:
    labels = [f"{number}.25" for number in range(99)]
    with pytest.raises(DataError, match=r"^the labels are 0\.25, 1\.25, 2\.25 and 96 more: real"):
        require_classes(labels)
    require_classes(["1", "2.0", "nan", "a.5"])


def read(label: Any) -> Example:
    record = {"text": "a film", "gold": label}
    return TextClassification.read(record, "line 1", Columns("text", label="gold"))


def test_targets() -> None:
    task = TextClassification(UNNAMED)
    assert task.targets([read(1), read(0.0), read("LABEL_2")]).tolist() == [1, 0, 2]
    assert [task.told_target(label) for label in ("1", "LABEL_2", "ugly")] == [
        "LABEL_1", "LABEL_2", "ugly",
    ]  # fmt: skip
    assert task.unknown(["1", "ugly", "7", "bad"]) == ["7", "bad", "ugly"]
    assert TextClassification.read({"text": "a"}, "line 1", Columns()).target is None


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, 'line 1: expected a field "label" beside the text'),
        ("ugly", r"line 1: the model does not know the label 'ugly' \(it knows LABEL_0, LABEL_1, "),
        ("x" * 999, "know the label 'x{38}… "),
        (0.31, r"line 1: the labels are 0\.31: real values .* does not answer; expected names"),
    ],
)
def test_targets_that_are_not_known(label: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TextClassification(UNNAMED).targets([read(0), read(label)])


def test_many_labels_are_not_listed() -> None:
    task = TextClassification([f"LABEL_{place}" for place in range(150)])
    with pytest.raises(DataError, match=r"\(it knows LABEL_0, .*, LABEL_4 and 145 more\)"):
        task.targets([read("ugly")])
