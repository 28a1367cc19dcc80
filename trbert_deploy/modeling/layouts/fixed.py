"""Packed rows in a tensor of a fixed size: of what it holds the host knows nothing."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trbert_deploy.modeling.layouts.layout import ScoreBias, attend_within, largest_of_rows
from trbert_deploy.modeling.layouts.padded import PaddedLayout
from trbert_deploy.modeling.layouts.varlen import attend_packed
from trbert_deploy.modeling.memo import Memo
from trbert_deploy.plugins.packed_compaction import compact_packed


class FixedLayout(Memo):
    """Rows packed one behind the other in a tensor [T, H], whose end may be filler.

    Where they begin is known to the device alone, so that a whole chain can be recorded once and
    replayed (CUDA graphs). What survives a cut gets a fixed size, too; where it does not fit,
    ``overflowed`` tells, and the results mean nothing.

    Args:
        offsets: [B + 1] int32, where each row begins, and the end; on the device.
        size: T.
        longest: no row has more tokens.
        sizes: T behind each of the cuts that follow.
        positions: [T] int64, where the tokens stood in their rows; None for whole rows.
        overflowed: [] bool, whether tokens are missing already.
        equal: whether every row has ``longest`` tokens, and nothing is filler.
    """

    def __init__(
        self,
        offsets: Tensor,
        size: int,
        longest: int,
        sizes: tuple[int, ...] = (),
        positions: Tensor | None = None,
        overflowed: Tensor | None = None,
        equal: bool = False,
    ) -> None:
        super().__init__()
        missing = offsets[-1] > size
        self.overflowed = missing if overflowed is None else overflowed | missing
        self.offsets = offsets.clamp(max=size)  # never beyond the tensor
        self._size = size
        self._longest = longest
        self._sizes = sizes
        self._equal = equal
        self.positions = self._place if positions is None else positions

    @property
    def starts(self) -> Tensor:
        """Where each row begins: [B] int32."""
        return self.offsets[:-1].clamp(max=self._size - 1)

    @property
    def counts(self) -> Tensor:
        """Tokens per row: [B] int64."""
        return self.offsets.diff().long()

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per row: [B]; waits for the device."""
        return self.counts.cpu().numpy()

    @cached_property
    def row_of_token(self) -> Tensor:
        """The row that each token belongs to, B for filler: [T] int64."""
        tokens = torch.arange(self._size, dtype=torch.int32, device=self.offsets.device)
        return torch.searchsorted(self.offsets[1:], tokens, right=True)

    @cached_property
    def _place(self) -> Tensor:
        """Where each token lies in its row: [T] int64; 0 for filler."""
        tokens = torch.arange(self._size, device=self.offsets.device)
        if self._equal:
            return tokens % self._longest
        place = tokens - self.offsets.index_select(0, self.row_of_token)
        return torch.where(self.row_of_token < len(self.offsets) - 1, place, 0)

    def positions_of(self, tokens: Tensor) -> Tensor:
        return self.positions

    def first(self, hidden: Tensor) -> Tensor:
        return hidden.index_select(0, self.starts)

    def mean(self, hidden: Tensor) -> Tensor:
        sums = self.row_sums(hidden.float().T).T  # [B, H]
        return sums / self.counts[:, None]

    def max(self, hidden: Tensor) -> Tensor:
        return largest_of_rows(hidden.float(), self.row_of_token, len(self.offsets))[:-1]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_heads: int,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        if self._equal and bias is None:
            shape = (-1, self._longest)
            q, k, v = (states.unflatten(0, shape) for states in (query, key, value))
            return attend_within(q, k, v, num_heads, None).flatten(0, 1)
        if query.is_cuda and bias is None:
            return attend_packed(query, key, value, num_heads, self.offsets, self._longest)
        if bias is not None:
            bias = ScoreBias(bias.compute, tuple(self.pad(each) for each in bias.per_token))
        padded = self.once("padded", self._padded_layout)
        q, k, v = (self.pad(states) for states in (query, key, value))
        return self.unpad(padded.attend(q, k, v, num_heads, bias))

    def _padded_layout(self) -> PaddedLayout:
        places = torch.arange(self._longest, device=self.offsets.device)
        return PaddedLayout(places < self.counts[:, None], self.pad(self.positions))

    def compact(
        self, keep: Tensor, columns: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], FixedLayout]:
        """As ``RowsLayout.compact``, for one choice; what is left of the next size is filler."""
        size, *sizes = self._sizes
        columns = (*columns, self.positions)
        (*left, positions), offsets = compact_packed(keep[0], self.offsets, size, columns)
        layout = FixedLayout(offsets, size, self._longest, tuple(sizes), positions, self.overflowed)
        return tuple(left), layout

    def pad(self, values: Tensor) -> Tensor:
        """Packed values [T, ...] -> [B, S, ...], zero behind a row's tokens."""
        rows = len(self.offsets) - 1
        padded = values.new_zeros(rows * self._longest + 1, *values.shape[1:])
        padded = padded.index_copy(0, self._padded(), values)  # filler: behind
        return padded[:-1].unflatten(0, (rows, self._longest))

    def unpad(self, values: Tensor) -> Tensor:
        """Values [B, S, ...] -> packed [T, ...]; any for filler."""
        values = values.flatten(0, 1)
        return values.index_select(0, self._padded().clamp(max=len(values) - 1))

    def row_sums(self, values: Tensor) -> Tensor:
        """Sum of packed values [..., T] over each row: [..., B]."""
        sums = values.new_zeros(*values.shape[:-1], len(self.offsets))
        return sums.index_add(-1, self.row_of_token, values)[..., :-1]

    def _padded(self) -> Tensor:
        """Where each token lies in a flattened [B, S], B * S for filler: [T] int64."""
        return self.row_of_token * self._longest + self._place
