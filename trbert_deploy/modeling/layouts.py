"""Which tokens stand beside each other: padded rows, or packed rows.

A layout knows how token states are laid out in a tensor and computes attention within
each row. The encoder is written once and runs under any of them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

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

    Everything but attention runs on the packed tokens. For attention, rows of similar
    length are gathered into padded groups.

    Args:
        lengths: tokens per row, in packed order; T is their sum.
        device: where the token states live.

    Attributes:
        starts: [B] int64, where each row begins.
        row_of_token: [T] int64, the row that each token belongs to.
    """

    MAX_GROUP_TOKENS = 16384
    MAX_PADDING = 0.1

    def __init__(self, lengths: NDArray[np.int64], device: torch.device | str = "cpu") -> None:
        self.lengths = lengths
        starts = np.cumsum(lengths) - lengths
        slots, self._groups = [], []
        back = np.empty(int(lengths.sum()), np.int64)  # the slot of every token
        used = 0
        for rows in group_by_length(lengths, self.MAX_GROUP_TOKENS, self.MAX_PADDING):
            place = np.arange(int(lengths[rows].max()))
            valid = place < lengths[rows, None]  # [b, S]
            # A padded slot reads its row's first token; the mask keeps it out of attention.
            source = starts[rows, None] + np.where(valid, place, 0)  # [b, S]
            back[source[valid]] = used + np.flatnonzero(valid)
            used += source.size
            slots.append(source.ravel())
            mask = None if valid.all() else torch.from_numpy(valid).to(device)[:, None, None, :]
            self._groups.append((valid.shape, mask))
        self._slots = torch.from_numpy(np.concatenate(slots)).to(device)
        self._back = torch.from_numpy(back).to(device)
        self.starts = torch.from_numpy(starts).to(device)
        rows_of = np.repeat(np.arange(len(lengths)), lengths)
        self.row_of_token = torch.from_numpy(rows_of).to(device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
        sizes = [batch * length for (batch, length), _ in self._groups]
        # index_select, unlike indexing, adds gradients up in a fixed order.
        parts = zip(
            *(states.index_select(0, self._slots).split(sizes) for states in (query, key, value)),
            strict=True,
        )
        contexts = [
            _attend(*(part.unflatten(0, shape) for part in group), num_heads, mask).flatten(0, 1)
            for group, (shape, mask) in zip(parts, self._groups, strict=True)
        ]
        return torch.cat(contexts).index_select(0, self._back)

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
