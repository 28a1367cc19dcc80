"""Compaction of packed rows in three Triton kernels: they count survivors, place and gather them.

PyTorch's own operations for it are some fifteen kernels a cut, each of which takes longer to begin
than to run where rows are few or short.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Tokens that a program looks at in one step.
_BLOCK = 1024
#: Survivors that a program gathers, and values of each in one step.
_SLOTS, _WIDTH = 8, 128


def compact_packed(
    keep: Tensor, offsets: Tensor, size: int, columns: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """As ``packed_compaction.compact_packed``."""
    rows = len(offsets) - 1
    counts = torch.empty(rows, dtype=torch.int32, device=keep.device)
    left = torch.empty_like(offsets)
    places = torch.empty(size, dtype=torch.int32, device=keep.device)
    bytes_of_keep = keep.view(torch.uint8)
    _count[(rows,)](bytes_of_keep, offsets, counts, _BLOCK)
    _place[(rows,)](bytes_of_keep, offsets, counts, left, places, size, _BLOCK)
    gathered = tuple(column.new_empty((size, *column.shape[1:])) for column in columns)
    _gather[(triton.cdiv(size, _SLOTS),)](
        tuple(map(_plain, columns)),
        tuple(map(_plain, gathered)),
        tuple(column[0].numel() for column in columns),
        places,
        left,
        rows,
        size,
        _SLOTS,
        _WIDTH,
    )
    return gathered, left


def _plain(column: Tensor) -> Tensor:
    return column.view(torch.uint8) if column.dtype == torch.bool else column


@triton.jit
def _count(keep, offsets, counts, BLOCK: tl.constexpr):
    """Survivors of every row; a program for each."""
    row = tl.program_id(0)
    start = tl.load(offsets + row)
    stop = tl.load(offsets + row + 1)
    total = tl.zeros([BLOCK], tl.int32)
    for at in range(start, stop, BLOCK):
        token = at + tl.arange(0, BLOCK)
        total += tl.load(keep + token, mask=token < stop, other=0).to(tl.int32)
    tl.store(counts + row, tl.sum(total))


@triton.jit(do_not_specialize=["size"])
def _place(keep, offsets, counts, left, places, size, BLOCK: tl.constexpr):
    """Which token stands where among the survivors; a program for each row."""
    row = tl.program_id(0)
    before = tl.zeros([BLOCK], tl.int32)
    for at in range(0, row, BLOCK):
        other = at + tl.arange(0, BLOCK)
        before += tl.load(counts + other, mask=other < row, other=0)
    slot = tl.sum(before)
    tl.store(left + row, slot)
    tl.store(left + row + 1, slot + tl.load(counts + row))  # the next row says the same
    start = tl.load(offsets + row)
    stop = tl.load(offsets + row + 1)
    for at in range(start, stop, BLOCK):
        token = at + tl.arange(0, BLOCK)
        kept = tl.load(keep + token, mask=token < stop, other=0).to(tl.int32)
        through = slot + tl.cumsum(kept, 0)
        tl.store(places + through - 1, token, mask=(kept != 0) & (through <= size))
        slot += tl.sum(kept)


@triton.jit(do_not_specialize=["rows", "size"])
def _gather(
    sources, targets, widths, places, left, rows, size, SLOTS: tl.constexpr, WIDTH: tl.constexpr
):
    """Values of some survivors; those of the first token where there are no more."""
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    room = slot < size
    filled = slot < tl.minimum(tl.load(left + rows), size)
    token = tl.load(places + slot, mask=filled, other=0).to(tl.int64)
    to = slot.to(tl.int64)
    for column in tl.static_range(len(sources)):
        width = widths[column]
        if width == 1:
            tl.store(targets[column] + to, tl.load(sources[column] + token, mask=room), mask=room)
        else:
            for at in range(0, width, WIDTH):
                place = at + tl.arange(0, WIDTH)[None, :]
                inside = room[:, None] & (place < width)
                values = tl.load(sources[column] + token[:, None] * width + place, mask=inside)
                tl.store(targets[column] + to[:, None] * width + place, values, mask=inside)
