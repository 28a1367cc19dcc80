"""What a compression may be asked for, and when it counts as failed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trbert_deploy.compress.options import CompressOptions
from trbert_deploy.errors import ConfigError
from trbert_deploy.tasks.columns import ColumnNames

OPTIONS = CompressOptions("model", "texts.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_speedup": 1.0}, "target_speedup is 1: expected more than 1"),
        ({"target_speedup": float("nan")}, "target_speedup is nan"),
        ({"min_agreement": 0.98}, "min_agreement is 0.98: expected a percentage, such as 98"),
        ({"min_agreement": 101.0}, "min_agreement is 101"),
        ({"max_drop": -0.5}, "max_drop is -0.5: expected 0 or more points"),
        ({"max_drop": float("nan")}, "max_drop is nan"),
        ({"max_drop": 1.0, "min_agreement": 98.0}, "give one"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(OPTIONS, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "score", "teacher", "fails"),
    [
        ({}, 0.1, 1.0, False),
        ({"min_agreement": 98.0}, 0.98, 1.0, False),
        ({"min_agreement": 98.0}, 0.9799, 1.0, True),
        ({"max_drop": 0.5}, 0.9, 0.905, False),
        ({"max_drop": 0.5}, 0.9, 0.9051, True),
        ({"max_drop": 0.0}, 0.91, 0.9, False),
    ],
)
def test_a_gate_is_missed_below_what_was_asked_for(
    changes: dict[str, float], score: float, teacher: float, fails: bool
) -> None:
    options = replace(OPTIONS, **changes)  # type: ignore[arg-type]
    assert options.fails(score, teacher) is fails


def test_changed_options_are_named() -> None:
    saved = OPTIONS.to_json()
    assert OPTIONS.changed(saved) == []
    other = replace(OPTIONS, max_drop=1.0, names=ColumnNames(text="body"))
    assert other.changed(saved) == ["max_drop", "names"]
