"""Attention over rows of any lengths that lie one behind the other on a GPU: one kernel for all."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_packed(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, offsets: Tensor, longest: int
) -> Tensor:
    """Multi-head attention within packed rows [T, H], on CUDA.

    In half precision by flash attention; float32, which that does not take, by the kernel of
    memory-efficient attention.

    Args:
        offsets: [B + 1] int32, where each row begins, and the end.
        longest: tokens of the longest row.

    Returns:
        context: [T, H].
    """
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (states.to(dtype) for states in (query, key, value))
    query, key, value = (
        states.unflatten(-1, (num_heads, -1)) for states in (query, key, value)
    )  # [T, N, D]
    # What PyTorch's own functions for this call, too; they take several times as long to launch.
    if query.dtype is torch.float32:
        context = torch.ops.aten._efficient_attention_forward(
            query[None],
            key[None],
            value[None],
            bias=None,
            cu_seqlens_q=offsets,
            cu_seqlens_k=offsets,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            dropout_p=0.0,
            custom_mask_type=0,
            compute_log_sumexp=query.requires_grad,
        )[0][0]
    else:
        context = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            cum_seq_q=offsets,
            cum_seq_k=offsets,
            max_q=longest,
            max_k=longest,
            dropout_p=0.0,
            is_causal=False,
            return_debug_mask=False,
        )[0]
    return context.flatten(-2)
