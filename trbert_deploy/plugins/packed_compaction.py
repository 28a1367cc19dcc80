"""Compaction of packed rows on a device: tensors of a fixed size, and no word to the host."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def compact_packed(
    keep: Tensor, offsets: Tensor, size: int, columns: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The survivors of packed rows, in order, in tensors of a fixed size.

    Args:
        keep: [T] bool.
        offsets: [B + 1] int32, where each row begins, and the end; what lies behind is filler.
        size: K; survivors that have no room are left out.
        columns: [T, ...] contiguous, what is known of every token.

    Returns:
        The columns [K, ...], filled up with values of any tokens; and where each row begins now,
        and the end: [B + 1] int32, beyond K where there was no room.
    """
    if keep.is_cuda and has_triton():
        from trbert_deploy.plugins import triton_compaction

        return triton_compaction.compact_packed(keep, offsets, size, columns)
    return compact_in_torch(keep, offsets, size, columns)


@cache
def has_triton() -> bool:
    """Whether Triton is here, as it is beside PyTorch's builds for GPUs on Linux."""
    return find_spec("triton") is not None


def compact_in_torch(
    keep: Tensor, offsets: Tensor, size: int, columns: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """``compact_packed`` in operations of PyTorch, on any device."""
    # Filler lies behind the rows: its survivors do so again, and move nobody's place.
    through = keep.new_zeros(len(keep) + 1, dtype=torch.int64)  # survivors up to a token
    torch.cumsum(keep, 0, out=through[1:])
    left = through.index_select(0, offsets).to(torch.int32)
    places = through.new_zeros(size + 2)
    # Place 0 takes what is dropped; the last, what there is no room for.
    target = (through[1:] * keep).clamp(max=size + 1)
    places.scatter_(0, target, torch.arange(len(keep), device=keep.device))
    return tuple(column.index_select(0, places[1:-1]) for column in columns), left
