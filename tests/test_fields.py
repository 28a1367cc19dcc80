"""Values of a wrong kind are refused where a file is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from trbert_deploy.errors import ConfigError
from trbert_deploy.fields import MOST_LEVELS, is_deep, known_fields, require_kind


@dataclass
class Inner:
    size: int


@dataclass
class Outer:
    name: str
    inner: Inner
    share: float = 0.5


def test_known_fields_are_given_back() -> None:
    data = {"name": "a", "inner": {"size": "read by its own fields"}, "share": 1}
    assert known_fields(Outer, data, "outer") == data
    assert known_fields(Outer, {"name": "a", "inner": {}}, "outer", defaults=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"name": "a", "inner": {}},
            r"^outer has the fields \['inner', 'name'\]: expected \['inner', 'name', 'sh",
        ),
        ({"name": "a", "inner": {}, "share": 1, "x\n": 2}, r"^outer has the fields .*'x\\n'"),
        ([], "^outer has the fields list: expected"),
        (None, "^outer has the fields NoneType: expected"),
        ({"name": 3, "inner": {}, "share": 1}, "^name of outer is 3: expected str$"),
        ({"name": "a", "inner": 3, "share": 1}, "^inner of outer is 3: expected Inner$"),
    ],
)
def test_other_fields_and_kinds_are_refused(data: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        known_fields(Outer, data, "outer")


def test_a_field_without_default_is_needed_always() -> None:
    with pytest.raises(ConfigError, match="outer has the fields"):
        known_fields(Outer, {"name": "a"}, "outer", defaults=True)


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


FITTING = [
    (1, int), (-(2**63), int), (2**63 - 1, int), (1, float), (1.5, float), (True, bool), ("ä", str),
    ("no\u00a0break", str), ("", str), ([1, 2], tuple[int, ...]), ((), tuple[int, ...]),
    ({"a": 1}, Mapping[str, int]), ({}, Mapping[str, int]), (None, int | None), (3, int | None),
    ([{"a": 1}], tuple[Mapping[str, int], ...]),
    (["B", 3], tuple[str | int, ...]), (None, Any), (nested(MOST_LEVELS - 1), Any),
]  # fmt: skip
MISFITS = [
    (True, int), (1.0, int), ("1", int), (None, int), (2**63, int), (-(2**63) - 1, int),
    (True, float), ("1", float), (math.nan, float), (math.inf, float), (-math.inf, float),
    (1, bool), (1, str), ("two\nlines", str), ("\0", str), ("\x85", str), ("\u2028", str),
    ("\ud800", str), (b"a", str), ("ab", tuple[str, ...]), ([1, "2"], tuple[int, ...]),
    ({"a": "1"}, Mapping[str, int]), ({"a\n": 1}, Mapping[str, int]), ([], Mapping[str, int]),
    ([{"a": "1"}], tuple[Mapping[str, int], ...]), ([{3: 1}], tuple[Mapping[str, int], ...]),
    ("3", int | None), (nested(MOST_LEVELS), Any), (nested(100_000), Any), ([], Inner),
]  # fmt: skip


@pytest.mark.parametrize(("value", "hint"), FITTING)
def test_values_of_their_kind_pass(value: object, hint: Any) -> None:
    require_kind(value, hint, "it")


@pytest.mark.parametrize(("value", "hint"), MISFITS)
def test_values_of_another_kind_are_refused_in_one_line(value: object, hint: Any) -> None:
    expected = r"^(it|'a' in it|a name in it) is .*: expected "
    with pytest.raises(ConfigError, match=expected) as caught:
        require_kind(value, hint, "it")
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 300


def test_levels_are_counted_without_recursion() -> None:
    assert not is_deep(nested(MOST_LEVELS - 1)) and is_deep(nested(MOST_LEVELS))
    assert is_deep([1, [], nested(MOST_LEVELS)])
    assert not is_deep("x" * 1000) and not is_deep([[]] * 1000)
