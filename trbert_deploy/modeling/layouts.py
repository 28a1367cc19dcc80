"""Which tokens stand beside each other: padded rows, or packed rows.

A layout knows how token states are laid out in a tensor and computes attention within
each row. The encoder is written once and runs under any of them.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from trbert_deploy.batching import group_by_length


class Layout(Protocol):
    """Computes attention within rows."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
        """Attention of every token over its own row.

        Args:
            query, key, value: [..., H] with H = num_heads * D.

        Returns:
            context: [..., H].
        """
        ...


def _attend(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None
) -> Tensor:
    """Multi-head attention over [B, S, H]; mask [B, 1, S, S] bool or None."""

    def heads(states: Tensor) -> Tensor:
        return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B, N, S, D]

    context = scaled_dot_product_attention(heads(query), heads(key), heads(value), attn_mask=mask)
    return context.transpose(1, 2).flatten(2)  # [B, S, H]


class PaddedLayout:
    """Rows of one tensor [B, S, H], those shorter than S padded at the end.

    Args:
        mask: [B, S] bool, True where a token is; None when no row is padded.
    """

    def __init__(self, mask: Tensor | None) -> None:
        self.mask = mask

    def attend(self, query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
        mask = self.mask
        if mask is not None:
            # Spelled out to [B, 1, S, S]: runtimes do not agree on a broadcast mask.
            batch, length = mask.shape
            mask = mask[:, None, None, :].expand(batch, 1, length, length)
        return _attend(query, key, value, num_heads, mask)


class PackedLayout:
    """Rows packed one behind the other in a tensor [T, H], without padding between them.

    Everything but attention runs on the packed tokens. Attention runs once for all rows of
    one length, so that it needs neither padding nor mask.

    Args:
        lengths: tokens per row, in packed order; T is their sum.
        device: where the token states live.

    Attributes:
        starts: [B] int64, where each row begins.
        row_of_token: [T] int64, the row that each token belongs to.
    """

    MAX_GROUP_TOKENS = 16384

    #: Backward, PyTorch's bfloat16 attention on CPUs is slower than float32 on shorter rows than
    #: these, several times on short ones. Forward it is always faster.
    BACKWARD_IN_BF16 = 1024

    def __init__(self, lengths: NDArray[np.int64], device: torch.device | str = "cpu") -> None:
        self.lengths = lengths
        groups = group_by_length(lengths, self.MAX_GROUP_TOKENS, max_padding=0.0)
        self._shapes = [(len(rows), int(lengths[rows[0]])) for rows in groups]
        starts = np.cumsum(lengths) - lengths
        order = np.concatenate(
            [
                (starts[rows, None] + np.arange(length)).ravel()
                for rows, (_, length) in zip(groups, self._shapes, strict=True)
            ]
        )
        # Rows that come sorted by length lie as attention wants them: nothing to gather.
        self._order = self._back = None
        if (order[1:] < order[:-1]).any():
            self._order = torch.from_numpy(order).to(device)
            self._back = torch.argsort(self._order)
        self.starts = torch.from_numpy(starts).to(device)
        rows_of = np.repeat(np.arange(len(lengths)), lengths)
        self.row_of_token = torch.from_numpy(rows_of).to(device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
        sizes = [batch * length for batch, length in self._shapes]
        parts = zip(
            *(_gather(states, self._order).split(sizes) for states in (query, key, value)),
            strict=True,
        )
        backward_on_cpu = query.device.type == "cpu" and query.requires_grad
        contexts = []
        for states, shape in zip(parts, self._shapes, strict=True):
            in_float32 = backward_on_cpu and shape[1] < self.BACKWARD_IN_BF16
            with torch.autocast("cpu", enabled=False) if in_float32 else nullcontext():
                q, k, v = (
                    (part.float() if in_float32 else part).unflatten(0, shape) for part in states
                )
                contexts.append(_attend(q, k, v, num_heads, None).flatten(0, 1))
        return _gather(torch.cat(contexts), self._back)

    def pad(self, values: Tensor) -> Tensor:
        """Packed values [T] -> [B, S], zero behind a row's length."""
        longest = int(self.lengths.max())
        padded = values.new_zeros(len(self.lengths), longest)
        return padded.masked_scatter(self._valid(longest), values)

    def unpad(self, values: Tensor) -> Tensor:
        """Values [B, S] -> packed [T]."""
        return values[self._valid(values.shape[1])]

    def row_sums(self, values: Tensor) -> Tensor:
        """Sum of packed values [..., T] over each row: [..., B]."""
        sums = values.new_zeros(*values.shape[:-1], len(self.lengths))
        return sums.index_add(-1, self.row_of_token, values)

    def _valid(self, longest: int) -> Tensor:
        lengths = torch.from_numpy(self.lengths).to(self.starts.device)
        return torch.arange(longest, device=lengths.device) < lengths[:, None]


class GatedLayout:
    """Rows whose tokens are attended to as far as their gates are open.

    Every softmax weight is multiplied by its token's gate and the weights are normalized again,
    so gates of 0 and 1 give what removing the closed tokens gives, and a closed gate still has a
    gradient. The weighted mean is the ratio of two attentions, over ``gate * value`` and over
    ``gate``: one call of the layout underneath, with wider heads, computes both.

    Args:
        layout: where the tokens lie.
        gate: [...] float32 from 0 to 1; at least one of each row must be open.
    """

    EXTRA = 8  # columns added to a head: one for the gate, padded to what kernels like

    def __init__(self, layout: Layout, gate: Tensor) -> None:
        self.layout = layout
        self.gate = gate

    def attend(self, query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
        width = query.shape[-1] // num_heads
        wide = width + self.EXTRA

        def widen(states: Tensor) -> Tensor:  # [..., H] -> [..., N, wide]
            return pad(states.unflatten(-1, (num_heads, width)), (0, self.EXTRA))

        # The layout underneath divides scores by the root of the wider head.
        query = widen(query) * (wide / width) ** 0.5
        ones = pad(value.new_ones(*value.shape[:-1], num_heads, 1), (width, self.EXTRA - 1))
        value = (widen(value) + ones) * self.gate[..., None, None]
        states = self.layout.attend(
            query.flatten(-2), widen(key).flatten(-2), value.flatten(-2), num_heads
        )
        context = states.unflatten(-1, (num_heads, wide))
        return (context[..., :width] / context[..., width : width + 1]).flatten(-2)


def _gather(states: Tensor, order: Tensor | None) -> Tensor:
    """states [T, H] in another order; index_select adds gradients up in a fixed order."""
    return states if order is None else states.index_select(0, order)
