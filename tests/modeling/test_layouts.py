"""Packed rows: packing, unpacking and attention within rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.layouts.padded import PaddedLayout

row_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=8).map(np.array)


@given(row_lengths, st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_attention_stays_within_rows(lengths: np.ndarray, seed: int) -> None:
    layout = PackedLayout(lengths)
    states = torch.randn(3, int(lengths.sum()), 8, generator=torch.Generator().manual_seed(seed))
    query, key, value = states
    packed = layout.attend(query, key, value, num_heads=2)
    for start, length in zip(layout.starts.tolist(), lengths.tolist(), strict=True):
        row = slice(start, start + length)
        alone = PaddedLayout(None).attend(query[None, row], key[None, row], value[None, row], 2)
        torch.testing.assert_close(packed[row], alone[0], atol=1e-5, rtol=1e-5)


@given(row_lengths)
@settings(max_examples=50, deadline=None)
def test_padding_and_unpadding_are_inverse(lengths: np.ndarray) -> None:
    layout = PackedLayout(lengths)
    values = torch.arange(1.0, float(lengths.sum()) + 1)
    padded = layout.pad(values)
    assert padded.shape == (len(lengths), lengths.max())
    assert torch.equal(layout.unpad(padded), values)
    assert torch.equal((padded > 0).sum(1), torch.from_numpy(lengths))
    expected = [part.sum() for part in values.split(lengths.tolist())]
    torch.testing.assert_close(layout.row_sums(values), torch.stack(expected))


def test_long_rows_learn_in_half_precision_and_short_ones_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PackedLayout, "BACKWARD_IN_BF16", 6)
    states = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(0))
    layout = PackedLayout(np.array([3, 9]))

    def attend(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        given = states.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            context = layout.attend(*given, num_heads=2)
        return context.float(), torch.autograd.grad(context.float().square().sum(), given)[0]

    context, gradient = attend(torch.bfloat16)
    rounded = states.bfloat16().float()
    reference, expected = attend(torch.float32)
    torch.testing.assert_close(context, reference, atol=0.05, rtol=0.05)
    torch.testing.assert_close(gradient.float(), expected, atol=0.15, rtol=0.15)
    short = PaddedLayout(None).attend(*rounded[:, None, :3], 2)[0]
    torch.testing.assert_close(context[:3], short, atol=1e-6, rtol=1e-5)  # not rounded again
    assert torch.equal(context[3:], context[3:].bfloat16().float())
