"""Which tokens stand beside each other: padded rows, or packed rows.

A layout knows how token states are laid out in a tensor and computes attention within
each row. The encoder is written once and runs under any of them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
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
        max_tokens: slots of the largest attention group.
    """

    MAX_PADDING = 0.1

    def __init__(
        self, lengths: np.ndarray, device: torch.device | str = "cpu", max_tokens: int = 16384
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        self.device = torch.device(device)
        self._groups = []
        order = []
        for rows in group_by_length(self.lengths, max_tokens, self.MAX_PADDING):
            longest = int(self.lengths[rows].max())
            place = np.arange(longest)
            valid = place < self.lengths[rows, None]  # [b, S]
            # Padded slots read their row's first token; the mask keeps them out of attention.
            source = self.starts[rows, None] + np.where(valid, place, 0)  # [b, S]
            order.append(source[valid])
            padded = None if valid.all() else torch.from_numpy(valid).to(self.device)
            self._groups.append((torch.from_numpy(source).to(self.device), padded))
        # Where packed token t stands once the groups' tokens are put one behind the other.
        inverse = np.argsort(np.concatenate(order)) if order else np.zeros(0, np.int64)
        self._back = torch.from_numpy(inverse).to(self.device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
        contexts = []
        for source, valid in self._groups:
            mask = None if valid is None else valid[:, None, None, :]
            context = _attend(query[source], key[source], value[source], num_heads, mask)
            contexts.append(context.flatten(0, 1) if valid is None else context[valid])
        return torch.cat(contexts)[self._back]

    def first_tokens(self) -> Tensor:
        """[B] int64: where each row begins."""
        return torch.from_numpy(self.starts).to(self.device)
