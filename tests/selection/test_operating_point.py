"""An operating point changes what it names, and nothing else, in every rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trbert_deploy.errors import ConfigError
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.selection.rules import SelectionRule

RULE = SelectionRule("ratio", 0.25, 4)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        (OperatingPoint(), RULE),
        (OperatingPoint(threshold=0.25), SelectionRule("threshold", 0.25, 4)),
        (OperatingPoint(threshold=0.0), SelectionRule("threshold", 0.0, 4)),
        (OperatingPoint(ratio=0.75), SelectionRule("ratio", 0.75, 4)),
        (OperatingPoint(max_tokens=12), SelectionRule("budget", 12, 4)),
        (OperatingPoint(round_to=8), replace(RULE, round_to=8)),
        (OperatingPoint(max_tokens=12, round_to=3), SelectionRule("budget", 12, 3)),
        (OperatingPoint(latency_budget_ms=5.0), RULE),
        (OperatingPoint(dense_below=3), RULE),
    ],
)
def test_a_rule_is_turned_as_far_as_it_is_asked(
    point: OperatingPoint, expected: SelectionRule
) -> None:
    assert point.turn(RULE) == expected


def test_a_budget_fits_what_the_rule_rounds_to() -> None:
    with pytest.raises(ConfigError, match=r"^budget is 10: expected a multiple of round_to, 4,"):
        OperatingPoint(max_tokens=10).turn(RULE)


@pytest.mark.parametrize("below", [None, "auto", 0, 1, 512])
def test_what_is_left_to_the_dense_graph(below: int | None) -> None:
    assert OperatingPoint(dense_below=below).dense_below == below


@pytest.mark.parametrize("below", [-1, "none", "AUTO", 1.5, 2**31])
def test_what_cannot_be_left_to_the_dense_graph(below: object) -> None:
    expected = f"^dense_below is {below}: expected a whole number from 0 to 2,147,483,647, or auto$"
    with pytest.raises(ConfigError, match=expected):
        OperatingPoint(dense_below=below)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.5, "ratio": 0.5},
        {"ratio": 0.5, "max_tokens": 4},
        {"threshold": 0.0, "max_tokens": 4},
        {"threshold": 0.5, "ratio": 0.5, "max_tokens": 4},
    ],
)
def test_one_rule_at_a_time(options: dict[str, float]) -> None:
    expected = "^threshold, ratio and max_tokens exclude each other: give one of them$"
    with pytest.raises(ConfigError, match=expected):
        OperatingPoint(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"ratio": 0.5}, {"max_tokens": 4}])
def test_a_latency_budget_decides_alone(options: dict[str, float]) -> None:
    expected = (
        "^a latency budget decides the threshold: give no threshold, ratio or max_tokens with it$"
    )
    with pytest.raises(ConfigError, match=expected):
        OperatingPoint(latency_budget_ms=5.0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"threshold": 1.5}, {"ratio": 0.0}, {"max_tokens": 0}, {"round_to": 0}]
)
def test_values_are_checked_at_once(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        OperatingPoint(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_tokens", "round_to"])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, "many", 2**31, 10**20])
def test_numbers_of_tokens_have_limits(name: str, wrong: object) -> None:
    expected = f"^{name} is {wrong}: expected a whole number from 1 to 2,147,483,647$"
    with pytest.raises(ConfigError, match=expected):
        OperatingPoint(**{name: wrong})  # type: ignore[arg-type]
    assert OperatingPoint(**{name: 2**31 - 1}) is not None
