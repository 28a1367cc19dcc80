"""Which tokens stand beside each other: padded rows, or packed rows.

A layout knows how token states are laid out in a tensor, where each token stood in its row as it
was given, and computes attention within each row. The encoder is written once and runs under any
of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trbert_deploy.modeling.memo import Memo, T


class RowGroup(Memo):
    """Rows that attend together.

    Attributes:
        positions: [B or 1, S] int64, where their tokens stood in the rows as they were given.
    """

    def __init__(self, positions: Tensor) -> None:
        super().__init__()
        self.positions = positions


@dataclass(frozen=True)
class ScoreBias:
    """What a family does to the scaled products of queries and keys.

    Attributes:
        compute: (group, *per_token) -> [B or 1, N or 1, S, S]; floats are added to the products,
            of booleans True lets the query of the third axis see the key of the fourth.
        per_token: [..., X] each, what it needs of every token; given to it as [B, S, X].
    """

    compute: Callable[..., Tensor]
    per_token: tuple[Tensor, ...] = ()


class Layout(Protocol):
    """Computes attention within rows."""

    def positions_of(self, tokens: Tensor) -> Tensor:
        """Where tokens stood in their rows as they were given: int64, broadcastable to [...].

        Args:
            tokens: ids [...] or states [..., H] that lie as the layout says.
        """
        ...

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What depends on positions and weights alone, computed for the first layer that asks."""
        ...

    def first(self, hidden: Tensor) -> Tensor:
        """The states of every row's first token: [..., H] -> [B, H]."""
        ...

    def mean(self, hidden: Tensor) -> Tensor:
        """The mean of every row's states: [..., H] -> [B, H]."""
        ...

    def max(self, hidden: Tensor) -> Tensor:
        """The largest of every row's states: [..., H] -> [B, H]."""
        ...

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_heads: int,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        """Attention of every token over its own row.

        Args:
            query, key, value: [..., H] with H = num_heads * D.

        Returns:
            context: [..., H].
        """
        ...


class RowsLayout(Layout, Protocol):
    """Rows one behind the other in a tensor [T, ...], of which some tokens may be taken.

    Attributes:
        positions: [T] int64, where the tokens stood in their rows.
    """

    positions: Tensor

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per row: [B], on the host."""
        ...

    @property
    def counts(self) -> Tensor:
        """Tokens per row: [B] int64, on the device."""
        ...

    @property
    def offsets(self) -> Tensor:
        """Where each row begins, and the end: [B + 1] int32."""
        ...

    @property
    def row_of_token(self) -> Tensor:
        """The row that each token belongs to: [T] int64."""
        ...

    def compact(
        self, keep: Tensor, columns: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], RowsLayout]:
        """The tokens that survive, and the rows that they form.

        Args:
            keep: [P, T] bool; each of the P choices makes rows of its own, P * B in all.
            columns: [T, ...] each, what is known of every token.

        Returns:
            The survivors' part of every column, in order, and their layout.
        """
        ...

    def pad(self, values: Tensor) -> Tensor:
        """Values of every token [T, ...] -> [B, S, ...], zero behind a row's tokens."""
        ...

    def unpad(self, values: Tensor) -> Tensor:
        """Values [B, S, ...] -> those of every token: [T, ...]."""
        ...

    def row_sums(self, values: Tensor) -> Tensor:
        """Sum of values [..., T] over each row: [..., B]."""
        ...


def largest_of_rows(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """The largest of each row's values: [T, X], row of each [T] int64 -> [B, X]."""
    largest = values.new_full((rows, values.shape[1]), -torch.inf)
    return largest.scatter_reduce(0, row[:, None].expand_as(values), values, "amax")


def heads_of(states: Tensor, num_heads: int) -> Tensor:
    """[B, S, H] -> [B, N, S, D]."""
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def attend_within(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None
) -> Tensor:
    """Multi-head attention over [B, S, H]; mask [B or 1, N or 1, S, S], bool or float, or None."""
    query, key, value = (heads_of(states, num_heads) for states in (query, key, value))
    context = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return context.transpose(1, 2).flatten(2)  # [B, S, H]
