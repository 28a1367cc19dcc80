"""The selection rule against a naive one, and the promises of the design contract."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trbert_deploy.errors import ConfigError
from trbert_deploy.selection.rules import SelectionRule
from trbert_deploy.selection.select import first_token, select

RULES = st.builds(
    SelectionRule,
    st.just("threshold"),
    st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([1, 2, 3, 8, 16]),
) | st.one_of(
    st.builds(
        SelectionRule,
        st.just("ratio"),
        st.floats(0, 1, width=32, exclude_min=True) | st.sampled_from([0.1, 0.3, 1.0]),
        st.sampled_from([1, 4, 16]),
    ),
    st.builds(
        lambda groups, round_to: SelectionRule("budget", float(groups * round_to), round_to),
        st.integers(1, 30),
        st.sampled_from([1, 4, 16]),
    ),
)
#: Few different values, so that ties are common, and any float besides.
LOGITS = st.sampled_from([-2.0, 0.0, 0.0, 1.0, math.inf, -math.inf]) | st.floats(-20, 20, width=32)


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep logits [B, S], lengths [B] and protected tokens [B, S]; anything behind the lengths."""
    rows, slots = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    logits = draw(st.lists(LOGITS, min_size=rows * slots, max_size=rows * slots))
    lengths = draw(st.lists(st.integers(1, slots), min_size=rows, max_size=rows))
    marks = draw(st.lists(st.booleans(), min_size=rows * slots, max_size=rows * slots))
    shape = (rows, slots)
    return (
        np.array(logits, np.float32).reshape(shape),
        np.array(lengths),
        np.array(marks).reshape(shape) & draw(st.booleans()) | (np.arange(slots) == 0),
    )


def naive(row: list[float], rule: SelectionRule, protected: list[bool]) -> list[int]:
    """Positions that a row keeps, by plain sorting."""
    must = {0} | {place for place, mark in enumerate(protected) if mark}
    best = sorted(range(len(row)), key=lambda place: (place not in must, -row[place], place))
    if rule.kind == "threshold":
        if rule.value in (0.0, 1.0):
            bound = -math.inf if rule.value == 0.0 else math.inf
        else:
            bound = float(np.float32(math.log(rule.value) - math.log1p(-rule.value)))
        count = len(must | {place for place, logit in enumerate(row) if logit >= bound})
    elif rule.kind == "ratio":
        count = math.ceil(rule.value * len(row) - 1e-9)
    else:
        count = int(rule.value)
    count = max(count, len(must))
    count = math.ceil(count / rule.round_to) * rule.round_to
    return sorted(best[:count])


@given(batches(), RULES)
def test_agrees_with_the_naive_rule(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray], rule: SelectionRule
) -> None:
    logits, lengths, protected = batch
    keep = select(logits, lengths, rule, protected)
    assert keep.shape == logits.shape and keep.dtype == bool
    for row, length in enumerate(lengths):
        expected = naive(logits[row, :length].tolist(), rule, protected[row, :length].tolist())
        assert np.flatnonzero(keep[row]).tolist() == expected


@given(batches(), RULES)
def test_numpy_and_torch_keep_the_same(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray], rule: SelectionRule
) -> None:
    logits, lengths, protected = batch
    theirs = select(*map(torch.from_numpy, (logits, lengths)), rule, torch.from_numpy(protected))
    assert np.array_equal(select(logits, lengths, rule, protected), theirs.numpy())


@given(batches(), RULES, st.integers(0, 5))
def test_neither_padding_nor_other_rows_matter(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray], rule: SelectionRule, extra: int
) -> None:
    logits, lengths, protected = batch
    together = select(logits, lengths, rule, protected)
    for row, length in enumerate(lengths):
        padding = np.full(extra, math.nan, np.float32)
        alone = select(
            np.concatenate([logits[row, :length], padding])[None],
            lengths[row : row + 1],
            rule,
            np.concatenate([protected[row, :length], np.ones(extra, bool)])[None],
        )
        assert np.array_equal(alone[0, :length], together[row, :length])
        assert not alone[0, length:].any()
        assert not together[row, length:].any()


@given(batches(), RULES)
def test_broken_logits_never_keep_padding(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray], rule: SelectionRule
) -> None:
    logits, lengths, protected = batch
    keep = select(np.full_like(logits, math.nan), lengths, rule, protected)
    valid = np.arange(logits.shape[1]) < lengths[:, None]
    assert keep[:, 0].all()
    assert not (keep & ~valid).any()


def keep_of(
    logits: list[float], rule: SelectionRule, protected: np.ndarray | None = None
) -> list[int]:
    array = np.array([logits], np.float32)
    marks = first_token(len(logits))[None] if protected is None else protected
    keep = select(array, np.array([len(logits)]), rule, marks)
    assert np.array_equal(select(array, None, rule, marks), keep)  # a whole row needs no length
    return np.flatnonzero(keep[0]).tolist()


@given(batches(), RULES, st.booleans())
def test_whole_rows_need_no_lengths(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray], rule: SelectionRule, broken: bool
) -> None:
    logits, _, protected = batch
    if broken:
        logits = np.where(logits == 1.0, np.float32("nan"), logits)
    lengths = np.full(len(logits), logits.shape[1])
    expected = select(logits, lengths, rule, protected)
    assert np.array_equal(select(logits, None, rule, protected), expected)
    theirs = select(torch.from_numpy(logits), None, rule, torch.from_numpy(protected))
    assert np.array_equal(theirs, expected)


def test_whole_rows_are_not_ranked_by_a_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("trbert_deploy.selection.select.keep_best")
    array, marks = np.array([[5, -1, -3, 4]], np.float32), first_token(4)[None]
    keep = select(array, None, SelectionRule("threshold", 0.5, 3), marks)
    assert keep.tolist() == [[True, True, False, True]]


def test_threshold_is_a_probability_and_inclusive() -> None:
    assert keep_of([-9, -0.001, 0.0, 0.001], SelectionRule("threshold", 0.5)) == [0, 2, 3]


def test_threshold_zero_keeps_everything_and_one_the_protected_alone() -> None:
    logits = [-90.0, 90.0, -90.0]
    assert keep_of(logits, SelectionRule("threshold", 0.0)) == [0, 1, 2]
    assert keep_of(logits, SelectionRule("threshold", 1.0)) == [0]
    protected = np.array([[False, False, True]])
    assert keep_of(logits, SelectionRule("threshold", 1.0), protected=protected) == [2]


@pytest.mark.parametrize(
    ("ratio", "length", "kept"), [(0.07, 100, 7), (0.55, 20, 11), (0.1, 31, 4)]
)
def test_ratio_rounds_up_and_no_further(ratio: float, length: int, kept: int) -> None:
    assert len(keep_of([0.0] * length, SelectionRule("ratio", ratio))) == kept


@pytest.mark.parametrize("ratio", [0.07, 0.1, 0.3, 0.55, 0.7, 1 / 3])
def test_torch_rounds_as_numpy_does(ratio: float) -> None:
    lengths = np.arange(1, 601)
    logits, protected = np.zeros((600, 600), np.float32), np.arange(600) == np.zeros((600, 1))
    rule = SelectionRule("ratio", ratio)
    kept = select(logits, lengths, rule, protected).sum(axis=1)
    assert kept.tolist() == [math.ceil(ratio * length - 1e-9) for length in lengths.tolist()]
    parameter = torch.nn.Parameter(torch.from_numpy(logits), requires_grad=False)
    theirs = select(parameter, torch.from_numpy(lengths), rule, torch.from_numpy(protected))
    assert theirs.sum(axis=1).tolist() == kept.tolist()


def test_ties_go_to_the_earlier_token() -> None:
    assert keep_of([0, 1, 1, 1, 1], SelectionRule("budget", 3)) == [0, 1, 2]


def test_what_is_no_number_comes_last() -> None:
    assert keep_of([0, math.nan, -math.inf], SelectionRule("budget", 2)) == [0, 2]
    assert keep_of([0, math.nan, -math.inf, math.inf], SelectionRule("budget", 2)) == [0, 3]


def test_no_row_is_too_short_for_a_rule() -> None:
    """Numbers that are far over a row's length, and over an array's arithmetic."""
    most = 2**31 - 1
    assert keep_of([0, -1], SelectionRule("budget", most)) == [0, 1]
    assert keep_of([0, -1], SelectionRule("threshold", 0.5, most)) == [0, 1]
    assert keep_of([0, -1], SelectionRule("ratio", 0.5, most)) == [0, 1]


def test_protected_tokens_come_before_any_logit() -> None:
    protected = np.array([[True, False, False, True]])
    rule = SelectionRule("budget", 2)
    assert keep_of([-5, math.inf, 9, -math.inf], rule, protected=protected) == [0, 3]


def test_round_to_fills_with_the_next_best() -> None:
    logits = [5, -1, -3, 4, -2, -4]
    assert keep_of(logits, SelectionRule("threshold", 0.5, round_to=1)) == [0, 3]
    assert keep_of(logits, SelectionRule("threshold", 0.5, round_to=2)) == [0, 3]
    assert keep_of(logits, SelectionRule("threshold", 0.2, round_to=2)) == [0, 1, 3, 4]
    assert keep_of(logits, SelectionRule("threshold", 0.5, round_to=3)) == [0, 1, 3]
    assert keep_of(logits, SelectionRule("threshold", 0.5, round_to=4)) == [0, 1, 3, 4]
    assert keep_of(logits, SelectionRule("threshold", 0.5, round_to=16)) == list(range(6))


@settings(max_examples=20)
@given(batches(), RULES)
def test_arguments_stay_as_they_are(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray], rule: SelectionRule
) -> None:
    copies = [array.copy() for array in batch]
    select(batch[0], batch[1], rule, batch[2])
    for array, copy in zip(batch, copies, strict=True):
        assert np.array_equal(array, copy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("best", 0.5), "rule 'best': expected one of threshold, ratio, budget$"),
        (("threshold", 1.5), "threshold is 1.5"),
        (("threshold", math.nan), "threshold is nan"),
        (("ratio", 0.0), "ratio is 0.0"),
        (("ratio", 1.01), "ratio is 1.01"),
        (("budget", 0.5), "budget is 0.5"),
        (("budget", 2.5), "budget is 2.5"),
        (("budget", math.inf), "budget is inf"),
        (("budget", math.nan), "budget is nan"),
        (("budget", 2.0**31), "budget is 2147483648"),
        (("threshold", 0.5, 2**31), "round_to is 2147483648"),
        (("budget", 10.0, 16), "a multiple of round_to, 16, since rounding up would exceed it$"),
        (("threshold", 0.5, 0), "round_to is 0"),
        (("threshold", 0.5, 1.5), "round_to is 1.5"),
    ],
)
def test_rules_are_checked_when_they_are_made(values: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SelectionRule(*values)


def test_with_value_checks_too() -> None:
    assert SelectionRule("ratio", 0.5, 8).with_value(0.25) == SelectionRule("ratio", 0.25, 8)
    with pytest.raises(ConfigError, match="ratio is 2"):
        SelectionRule("ratio", 0.5).with_value(2)
