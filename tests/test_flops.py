from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import tiny_spec
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.config import ReductionConfig
from trbert_deploy.flops import dense_flops, reduced_flops, speedup

SPEC = tiny_spec()
H, F = SPEC.hidden_size, SPEC.ffn_size
HEAD = 2 * H * H + 2 * H * 2


def attention(length: int) -> int:
    return 8 * length * H * H + 4 * length * length * H


def feed_forward(length: int) -> int:
    return 4 * length * H * F


def policy(length: int) -> int:
    return 2 * length * (32 * H + 32)


def test_dense_is_the_paper_count() -> None:
    assert dense_flops(SPEC, 10) == 4 * (attention(10) + feed_forward(10)) + HEAD


def test_each_segment_counts_its_own_tokens() -> None:
    layer = {length: attention(length) + feed_forward(length) for length in (64, 20, 6)}
    expected = layer[64] + policy(64) + layer[20] + policy(20) + 2 * layer[6] + HEAD
    assert reduced_flops(SPEC, ReductionConfig.parse("1,2"), [64, 20, 6]) == expected


def test_inside_a_layer_the_feed_forward_runs_on_survivors() -> None:
    rest = 3 * (attention(5) + feed_forward(5))
    expected = attention(64) + policy(64) + feed_forward(5) + rest + HEAD
    assert reduced_flops(SPEC, ReductionConfig.parse("0.5"), [64, 5]) == expected


def test_a_cut_at_0_scores_the_embeddings() -> None:
    expected = policy(64) + 4 * (attention(5) + feed_forward(5)) + HEAD
    assert reduced_flops(SPEC, ReductionConfig.parse("0"), [64, 5]) == expected


@given(st.integers(1, 512))
def test_without_cuts_nothing_is_saved(length: int) -> None:
    none = ReductionConfig()
    assert reduced_flops(SPEC, none, [length]) == dense_flops(SPEC, length)
    assert speedup(SPEC, none, [[length]]) == 1.0


@given(st.lists(st.tuples(st.integers(40, 512), st.integers(1, 40)), min_size=1, max_size=5))
def test_speedup_sums_over_rows(rows: list[tuple[int, int]]) -> None:
    reduction = ReductionConfig.parse("2")
    dense = sum(dense_flops(SPEC, length) for length, _ in rows)
    reduced = sum(reduced_flops(SPEC, reduction, row) for row in rows)
    assert speedup(SPEC, reduction, rows) == pytest.approx(dense / reduced)


def test_keeping_everything_costs_the_policies() -> None:
    reduction = ReductionConfig.parse("1,2")
    assert speedup(SPEC, reduction, [[64, 64, 64]]) < 1.0


def test_lengths_must_match_the_segments() -> None:
    with pytest.raises(ValueError, match="zip"):
        reduced_flops(SPEC, ReductionConfig.parse("1,2"), [64, 20])


def test_a_head_that_answers_tokens_is_paid_for_each_of_them() -> None:
    spec = tiny_spec(answers_tokens=True)
    reduction = ReductionConfig.parse("1,2")
    width, labels = spec.hidden_size, len(spec.labels)
    plain = replace(spec, answers_tokens=False)
    text = 2 * width**2 + 2 * width * labels
    tokens = 2 * 30 * width * labels
    assert dense_flops(spec, 30) - dense_flops(plain, 30) == tokens - text
    lengths = [30, 20, 12]
    both = (reduced_flops(each, reduction, lengths) for each in (spec, plain))
    assert next(both) - next(both) == tokens - text + 2 * 18 * width**2
