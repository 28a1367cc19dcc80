from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from conftest import tiny_spec
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.config import Cut, EncoderSpec, ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.selection.rules import SelectionRule


def positions(text: str) -> list[float]:
    return [cut.position for cut in ReductionConfig.parse(text).cuts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1,3", [1, 3]), ("0.5, 3", [0.5, 3]), ("0", [0]), ("", []), (" none ", []), ("2.0", [2])],
)
def test_cuts_are_read_as_written(text: str, expected: list[float]) -> None:
    assert positions(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,x", "'x' is not a number"),
        ("1,,3", "'' is not a number"),
        ("-1", "cut -1: expected a layer number"),
        ("0.25", "cut 0.25: expected a layer number"),
        ("nan", "cut nan: expected"),
        ("inf", "cut inf: expected"),
        ("3,1", "cuts 3,1: 1 is out of order"),
        ("2,2", "cuts 2,2: 2 is repeated"),
    ],
)
def test_bad_cuts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReductionConfig.parse(text)


def test_parse_gives_every_cut_the_rule() -> None:
    rule = SelectionRule("ratio", 0.3)
    assert [cut.rule for cut in ReductionConfig.parse("1,2", rule).cuts] == [rule, rule]


@given(st.lists(st.integers(0, 11), unique=True, max_size=6))
def test_segments_cover_every_step_once(steps: list[int]) -> None:
    reduction = ReductionConfig(tuple(Cut(step / 2) for step in sorted(steps)))
    segments = reduction.segments(6)
    assert len(segments) == len(steps) + 1
    covered = [step for segment in segments for step in range(segment.start, segment.stop)]
    assert covered == list(range(12))
    assert [segment.cut for segment in segments] == [*reduction.cuts, None]
    assert [segment.is_last for segment in segments] == [False] * len(steps) + [True]
    assert segments[0].is_first


@pytest.mark.parametrize("text", ["4", "4.5", "1,7"])
def test_cuts_at_the_end_or_behind_are_refused(text: str) -> None:
    message = "out of range: the encoder has 4 layers, so the last possible cut is 3.5"
    with pytest.raises(ConfigError, match=message):
        ReductionConfig.parse(text).segments(4)


@pytest.mark.parametrize(
    ("layers", "first", "of_tokens", "published"),
    [
        (12, [0.5, 6], [3, 5], [1, 6]),
        (6, [0.5, 3], [1.5, 2.5], [1, 3]),
        (4, [0.5, 2], [1, 1.5], [1, 2]),
        (3, [0.5, 1], [0.5, 1], [1]),
        (2, [0.5, 1], [0.5], [1]),
        (1, [0.5], [0.5], []),
    ],
)
def test_default_cuts_fit_every_depth(
    layers: int, first: list[float], of_tokens: list[float], published: list[float]
) -> None:
    spec = tiny_spec(num_layers=layers)
    for reduction, expected in (
        (ReductionConfig.default_for(spec), first),
        (ReductionConfig.default_for(replace(spec, answers_tokens=True)), of_tokens),
        (ReductionConfig.published_for(layers), published),
    ):
        assert [cut.position for cut in reduction.cuts] == expected
        reduction.segments(layers)


def test_rules_of_the_cuts_can_be_changed() -> None:
    reduction = ReductionConfig.parse("1,2", SelectionRule("threshold", 0.5, 8))
    assert {cut.rule for cut in reduction.at_threshold(0.25).cuts} == {
        SelectionRule("threshold", 0.25, 8)
    }
    rules = (SelectionRule("ratio", 0.5), SelectionRule("budget", 4))
    assert tuple(cut.rule for cut in reduction.with_rules(rules).cuts) == rules
    with pytest.raises(ConfigError, match="1 selection rules for 2 cuts"):
        reduction.with_rules(rules[:1])


@pytest.mark.parametrize("text", ["none", "0", "0.5,1,3.5"])
def test_reduction_survives_json(text: str) -> None:
    reduction = ReductionConfig.parse(text, SelectionRule("ratio", 0.3, 16))
    assert ReductionConfig.from_json(json.loads(json.dumps(reduction.to_json()))) == reduction


def test_encoder_survives_json() -> None:
    spec = tiny_spec()
    assert EncoderSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.num_steps == 8
    assert spec.with_positions(128).max_positions == 128


def cut_entry(**changes: Any) -> dict[str, Any]:
    return {"position": 1.0, "rule": {"kind": "ratio", "value": 0.3, "round_to": 1}, **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"cuts": []}, "has version None"),
        ({"version": 2, "cuts": []}, "version 2: this release reads version 1; upgrade"),
        ({"version": 1}, "has the cuts None: expected a list"),
        ({"version": 1, "cuts": [cut_entry(width=3)]}, "cut has the fields"),
        ({"version": 1, "cuts": [{"position": 1.0}]}, "cut has the fields"),
        ({"version": 1, "cuts": [3]}, "cut has the fields int"),
        ({"version": 1, "cuts": [cut_entry(rule={"kind": "ratio"})]}, "selection rule has the"),
        ({"version": 1, "cuts": [cut_entry(position=0.3)]}, "cut 0.3"),
    ],
)
def test_other_json_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReductionConfig.from_json(data)


def test_an_encoder_with_other_fields_is_refused() -> None:
    data = tiny_spec().to_json()
    del data["num_layers"]
    with pytest.raises(ConfigError, match="encoder has the fields"):
        EncoderSpec.from_json(data)
