"""``CompactTokens`` of padded rows in four Triton kernels, whose slots the device alone knows.

They count the slots, rank the tokens of each row, give them their places and gather their states.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

#: Above every logit that counts, and below all of them, as ``onnx_compaction`` has them.
_PROTECTED, _LARGEST = 3.3e38, 3.2e38
#: Tokens that a program ranks, and that it compares them with in one step.
_TOKENS, _OTHERS = 64, 128
#: Tokens, or rows, that a program looks at in one step.
_BLOCK = 1024
#: Slots that a program fills, and values of each in one step.
_SLOTS, _WIDTH = 8, 128


def compact_padded(
    hidden: Tensor,
    keep_logit: Tensor,
    present: Tensor,
    protected: Tensor,
    wanted: Tensor,
    compacted: Tensor,
    filled: Tensor,
    places: Tensor,
    slots: Tensor,
    rank: Tensor,
) -> None:
    """Write the ``wanted`` best tokens of every row to its front, in text order.

    All tensors are contiguous and on one device. K is the largest of ``wanted``, from 1 to S; what
    is written are the first B * K entries of tensors that have room for B * S. No value leads out
    of them: TensorRT measures kernels on any.

    Args:
        hidden: [B, S, H], of any type.
        keep_logit: [B, S] float32.
        present, protected: [B, S] uint8: whether there is a token, whether it must survive.
        wanted: [B, 1] int64, survivors of each row.
        compacted: for [B, K, H], of the type of ``hidden``.
        filled: for [B, K] uint8: 1 in the slots of survivors, which come first.
        places: for [B, K] int64: where each slot's token stood; behind survivors the best of those
            that were dropped.
        slots: for K, int64.
        rank: for scratch, [B, S] int32.
    """
    batch, length, width = hidden.shape
    _count[(1,)](wanted, slots, batch, length, _BLOCK)
    _rank[(batch, triton.cdiv(length, _TOKENS))](
        keep_logit, present, protected, rank, length, _PROTECTED, _LARGEST, _TOKENS, _OTHERS
    )
    _place[(batch,)](rank, wanted, slots, filled, places, length, _BLOCK)
    _gather[(batch, triton.cdiv(length, _SLOTS))](
        hidden, places, slots, compacted, length, width, _SLOTS, _WIDTH
    )


@triton.jit(do_not_specialize=["batch", "length"])
def _count(wanted, slots, batch, length, BLOCK: tl.constexpr):
    """The most that a row wants; one program."""
    most = tl.full([BLOCK], 1, tl.int64)
    for at in range(0, batch, BLOCK):
        row = at + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.load(wanted + row, mask=row < batch, other=1))
    tl.store(slots, tl.minimum(tl.max(most), length))


@triton.jit
def _priority(
    keep_logit, present, protected, place, inside, PROTECTED: tl.constexpr, LARGEST: tl.constexpr
):
    """What tokens are ranked by: protected ones first, no number last, then what is no token."""
    logit = tl.load(keep_logit + place, mask=inside, other=0.0)
    logit = tl.where(logit == logit, logit, -LARGEST)
    logit = tl.minimum(tl.maximum(logit, -LARGEST), LARGEST)
    is_protected = tl.load(protected + place, mask=inside, other=0) != 0
    is_present = tl.load(present + place, mask=inside, other=0) != 0
    return tl.where(is_present, tl.where(is_protected, PROTECTED, logit), -PROTECTED)


@triton.jit(do_not_specialize=["length"])
def _rank(
    keep_logit,
    present,
    protected,
    rank,
    length,
    PROTECTED: tl.constexpr,
    LARGEST: tl.constexpr,
    TOKENS: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """How many tokens of its row come before each of some; a program for these."""
    start = tl.program_id(0).to(tl.int64) * length
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    inside = token < length
    mine = _priority(keep_logit, present, protected, start + token, inside, PROTECTED, LARGEST)
    before = tl.zeros([TOKENS], tl.int32)
    for at in range(0, length, OTHERS):
        other = at + tl.arange(0, OTHERS)
        there = other < length
        theirs = _priority(keep_logit, present, protected, start + other, there, PROTECTED, LARGEST)
        better = theirs[None, :] > mine[:, None]
        earlier = (theirs[None, :] == mine[:, None]) & (other[None, :] < token[:, None])
        before += tl.sum(((better | earlier) & there[None, :]).to(tl.int32), 1)
    tl.store(rank + start + token, before, mask=inside)


@triton.jit(do_not_specialize=["length"])
def _place(rank, wanted, slots, filled, places, length, BLOCK: tl.constexpr):
    """Where the tokens of a row go: survivors first, then what fills its slots; a program each."""
    row = tl.program_id(0).to(tl.int64)
    size = tl.load(slots)
    kept = tl.minimum(tl.maximum(tl.load(wanted + row), 0), size)
    survivor = row * size
    filler = survivor + kept
    for at in range(0, length, BLOCK):
        token = at + tl.arange(0, BLOCK)
        own = tl.load(rank + row * length + token, mask=token < length, other=length)
        survives = own < kept
        fills = (own >= kept) & (own < size)
        through = survivor + tl.cumsum(survives.to(tl.int32), 0)
        tl.store(places + through - 1, token.to(tl.int64), mask=survives)
        tl.store(filled + through - 1, survives.to(tl.uint8), mask=survives)
        behind = filler + tl.cumsum(fills.to(tl.int32), 0)
        tl.store(places + behind - 1, token.to(tl.int64), mask=fills)
        tl.store(filled + behind - 1, survives.to(tl.uint8), mask=fills)
        survivor += tl.sum(survives.to(tl.int32))
        filler += tl.sum(fills.to(tl.int32))


@triton.jit(do_not_specialize=["length"])
def _gather(
    hidden, places, slots, compacted, length, width, SLOTS: tl.constexpr, WIDTH: tl.constexpr
):
    """The states of the tokens in some slots of a row; a program for these."""
    row = tl.program_id(0).to(tl.int64)
    size = tl.load(slots)
    slot = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    room = slot < size
    to = row * size + slot
    token = row * length + tl.load(places + to, mask=room, other=0)
    for at in range(0, width, WIDTH):
        column = at + tl.arange(0, WIDTH)[None, :]
        inside = room[:, None] & (column < width)
        states = tl.load(hidden + token[:, None] * width + column, mask=inside)
        tl.store(compacted + to[:, None] * width + column, states, mask=inside)
