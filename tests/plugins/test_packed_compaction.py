"""Compaction of packed rows in PyTorch's operations and in Triton's kernels: the same as numpy's.

Without a GPU Triton's kernels run in its interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trbert_deploy.plugins.packed_compaction import compact_in_torch, compact_packed

triton_compaction = pytest.importorskip("trbert_deploy.plugins.triton_compaction")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Compact = Callable[[Tensor, Tensor, int, tuple[Tensor, ...]], tuple[tuple[Tensor, ...], Tensor]]
FORMS = pytest.mark.parametrize(
    "compact",
    [
        compact_in_torch,
        pytest.param(
            triton_compaction.compact_packed, marks=[pytest.mark.gpu] if DEVICE == "cuda" else []
        ),
    ],
    ids=["torch", "triton"],
)


def expected(
    keep: np.ndarray, lengths: list[int], column: np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """The survivors' part of a column, and where rows begin, in numpy."""
    bounds = np.cumsum([0, *lengths])
    counts = [int(keep[start:stop].sum()) for start, stop in pairwise(bounds)]
    return column[np.flatnonzero(keep[: bounds[-1]])], [0, *np.cumsum(counts).tolist()]


def check(
    compact: Compact,
    lengths: list[int],
    filler: int,
    share: float,
    more: int,
    width: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    total = sum(lengths) + filler
    keep = rng.random(total) < share
    size = max(1, int(keep[: sum(lengths)].sum()) + more)
    columns = (
        rng.standard_normal((total, width)).astype(np.float32),
        np.arange(total),
        rng.random(total) < 0.5,
    )
    offsets = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=DEVICE)
    received, left = compact(
        torch.from_numpy(keep).to(DEVICE),
        offsets,
        size,
        tuple(torch.from_numpy(column).to(DEVICE) for column in columns),
    )
    assert left.dtype == torch.int32
    for column, found in zip(columns, received, strict=True):
        survivors, bounds = expected(keep, lengths, column)
        ours = found.cpu().numpy()
        assert ours.dtype == column.dtype and len(ours) == size
        np.testing.assert_array_equal(ours[: len(survivors)], survivors[:size])
        assert np.isin(ours[len(survivors) :], column).all()  # filler
        assert left.tolist() == bounds


@FORMS
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    filler=st.integers(0, 9),
    share=st.sampled_from([0.0, 0.3, 0.9, 1.1]),
    more=st.integers(-5, 20),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_equals_numpy(
    compact: Compact,
    lengths: list[int],
    filler: int,
    share: float,
    more: int,
    width: int,
    seed: int,
) -> None:
    check(compact, lengths, filler, share, more, width, seed)


@FORMS
def test_rows_and_states_beyond_a_block(compact: Compact) -> None:
    check(compact, [2500, 1, 1024, 1025], filler=3, share=0.4, more=7, width=300, seed=0)


def test_processors_take_operations_of_pytorch() -> None:
    keep, offsets = torch.tensor([True, False, True]), torch.tensor([0, 3], dtype=torch.int32)
    (column,), left = compact_packed(keep, offsets, 2, (torch.tensor([5, 6, 7]),))
    assert column.tolist() == [5, 7]
    assert left.tolist() == [0, 2]
