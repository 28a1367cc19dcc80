"""Attention in blocks is attention by the mask of windows, in PyTorch and in the graphs timed."""

from __future__ import annotations

import attention_cost
import numpy as np
import pytest
import torch
from attention_cost import MINILM, AskingAttention, EightBitProducts, OneAttention
from click.testing import CliRunner
from windows import WindowedAttention

from trbert_deploy.modeling.blocks.attention import Attention
from trbert_deploy.modeling.layouts.packed import PackedLayout


@pytest.mark.parametrize("blocks", [4, 6])
@pytest.mark.parametrize("first", [0, 3])
def test_blocks_compute_what_the_mask_says(blocks: int, first: int) -> None:
    torch.manual_seed(0)
    attention = Attention(MINILM).eval()
    hidden = torch.randn(2, blocks * 8, MINILM.hidden_size)
    layout = PackedLayout(np.array([blocks * 8] * 2))
    with torch.no_grad():
        in_blocks = OneAttention(attention, 8, first)(hidden)
        full = OneAttention(attention, None, first)(hidden)
        masked = WindowedAttention.of(attention, 8, first)(hidden.flatten(0, 1), layout)
    torch.testing.assert_close(in_blocks.flatten(0, 1), masked)
    assert (in_blocks - full).abs().max() > 0.01


def test_those_that_ask_get_what_full_attention_gives_them() -> None:
    torch.manual_seed(0)
    attention = Attention(MINILM).eval()
    hidden = torch.randn(2, 24, MINILM.hidden_size)
    with torch.no_grad():
        asking = AskingAttention(attention, 7)(hidden)
        full = OneAttention(attention, None, 0)(hidden)
    torch.testing.assert_close(asking, full[:, :7])


def test_8_bits_are_close_to_full_attention_and_not_it() -> None:
    torch.manual_seed(0)
    attention = Attention(MINILM).eval()
    hidden = torch.randn(1, 24, MINILM.hidden_size)
    with torch.no_grad():
        products = EightBitProducts.of(attention, hidden)
        rounded = OneAttention(attention, None, 0, products)(hidden)
        products.value /= 2  # the largest become less
        clipped = OneAttention(attention, None, 0, products)(hidden)
        full = OneAttention(attention, None, 0)(hidden)
    assert 0 < (rounded - full).abs().max() < 0.005
    assert (clipped - full).abs().max() > 2 * (rounded - full).abs().max()


@pytest.mark.slow
def test_graphs_compute_what_pytorch_does() -> None:
    timings = attention_cost.measure(64, (8, 32), 2, (0.5,), eight_bits=True, rounds=1)
    assert {each.form for each in timings} == {"full", "blocks of 8", "50% ask", "8 bits"}
    for each in timings:
        # A value half-way between two of 8 bits may become either.
        exact = 1e-3 if each.form == "8 bits" else 1e-4
        assert each.change < (exact if each.runtime.endswith("fp32") else 0.05)
        assert each.milliseconds > 0.0


def test_rows_are_made_of_whole_blocks() -> None:
    done = CliRunner().invoke(attention_cost.main, ["--lengths", "65", "--windows", "8"])
    assert done.exit_code == 1
    assert done.output == (
        "error: windows of 8 on 65 tokens, of which 4 see all: expected whole blocks, longer than "
        "these\n"
    )
