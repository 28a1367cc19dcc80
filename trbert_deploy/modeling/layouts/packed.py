"""Rows one behind the other, without padding: training, and whatever runs on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trbert_deploy.batching import NO_PADDING, group_by_length
from trbert_deploy.modeling.layouts.layout import (
    RowGroup,
    ScoreBias,
    attend_within,
    largest_of_rows,
)
from trbert_deploy.modeling.layouts.varlen import attend_packed
from trbert_deploy.modeling.memo import Memo


class PackedLayout(Memo):
    """Rows packed one behind the other in a tensor [T, H], without padding between them.

    Everything but attention runs on the packed tokens. Attention needs neither padding nor mask:
    it runs once for all rows of one length, or on GPUs once for rows of any lengths, where a
    family adds nothing to the scores.

    Args:
        lengths: tokens per row, in packed order; T is their sum.
        device: where the token states live.
        positions: [T] int64, where the tokens stood in their rows; None for whole rows.

    Attributes:
        counts: [B] int64, tokens per row, on the device.
        starts: [B] int64, where each row begins.
        row_of_token: [T] int64, the row that each token belongs to.
    """

    MAX_GROUP_TOKENS = 16384

    #: Backward, PyTorch's bfloat16 attention on CPUs is slower than float32 on shorter rows than
    #: these, several times on short ones. Forward it is always faster.
    BACKWARD_IN_BF16 = 1024

    def __init__(
        self,
        lengths: NDArray[np.int64],
        device: torch.device | str = "cpu",
        positions: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.lengths = lengths
        self._longest = int(lengths.max())
        self._ragged = int(lengths.min()) < self._longest
        # Nobody waits: from pageable memory a GPU has read it when the call returns.
        self.counts = torch.from_numpy(lengths).to(device, non_blocking=True)
        self.starts = self.counts.cumsum(0) - self.counts
        total = int(lengths.sum())  # told, so that a GPU is not waited for
        self.row_of_token = torch.repeat_interleave(self.counts, output_size=total)
        self._place = torch.arange(total, device=device) - self.starts[self.row_of_token]
        self._whole = positions is None
        self.positions = self._place if positions is None else positions
        self._row_groups: list[RowGroup] | None = None

    def positions_of(self, tokens: Tensor) -> Tensor:
        return self.positions

    def first(self, hidden: Tensor) -> Tensor:
        return hidden.index_select(0, self.starts)

    def mean(self, hidden: Tensor) -> Tensor:
        sums = self.row_sums(hidden.float().T).T  # [B, H]
        return sums / self.counts[:, None]

    def max(self, hidden: Tensor) -> Tensor:
        return largest_of_rows(hidden.float(), self.row_of_token, len(self.lengths))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_heads: int,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        if query.is_cuda and bias is None and self._ragged:
            return attend_packed(query, key, value, num_heads, self.offsets, self._longest)
        backward_on_cpu = query.device.type == "cpu" and query.requires_grad
        per_token = () if bias is None else bias.per_token
        columns = [self._grouped(states) for states in (query, key, value, *per_token)]
        contexts = []
        for place, shape in enumerate(self._shapes):
            in_float32 = backward_on_cpu and shape[1] < self.BACKWARD_IN_BF16
            with torch.autocast("cpu", enabled=False) if in_float32 else nullcontext():
                q, k, v, *needed = (
                    (column[place].float() if in_float32 else column[place]).unflatten(0, shape)
                    for column in columns
                )
                mask = None if bias is None else bias.compute(self._groups()[place], *needed)
                if mask is not None and mask.dtype != torch.bool:
                    mask = mask.to(q.dtype)
                contexts.append(attend_within(q, k, v, num_heads, mask).flatten(0, 1))
        return _gather(torch.cat(contexts), self._order_and_back[1])

    @cached_property
    def offsets(self) -> Tensor:
        """Where each row begins, and the end: [B + 1] int32."""
        end = self.starts[-1:] + self.counts[-1:]
        return torch.cat([self.starts, end]).to(torch.int32)

    @cached_property
    def _members(self) -> list[NDArray[np.int64]]:
        return group_by_length(self.lengths, self.MAX_GROUP_TOKENS, NO_PADDING)

    @cached_property
    def _shapes(self) -> list[tuple[int, int]]:
        """Rows and tokens per row of every group."""
        return [(len(rows), int(self.lengths[rows[0]])) for rows in self._members]

    @cached_property
    def _order_and_back(self) -> tuple[Tensor | None, Tensor | None]:
        """The tokens group by group, and the way back; None where they lie so already."""
        starts = np.cumsum(self.lengths) - self.lengths
        order = np.concatenate(
            [
                (starts[rows, None] + np.arange(length)).ravel()
                for rows, (_, length) in zip(self._members, self._shapes, strict=True)
            ]
        )
        if (order[1:] > order[:-1]).all():  # rows that come sorted by length
            return None, None
        gathered = torch.from_numpy(order).to(self.starts.device)
        return gathered, torch.argsort(gathered)

    def _grouped(self, states: Tensor) -> Sequence[Tensor]:
        """States [T, ...], those of the rows of one length together."""
        sizes = [batch * length for batch, length in self._shapes]
        return _gather(states, self._order_and_back[0]).split(sizes)

    def _groups(self) -> list[RowGroup]:
        if self._row_groups is None and self._whole:
            device = self.positions.device
            whole = (torch.arange(length, device=device) for _, length in self._shapes)
            self._row_groups = [RowGroup(positions[None]) for positions in whole]
        elif self._row_groups is None:
            parts = zip(self._grouped(self.positions), self._shapes, strict=True)
            self._row_groups = [RowGroup(part.unflatten(0, shape)) for part, shape in parts]
        return self._row_groups

    def compact(
        self, keep: Tensor, columns: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], PackedLayout]:
        """As ``RowsLayout.compact``; only here the host learns something, how many are left."""
        counts = self.row_sums(keep.float()).flatten().round().long()
        lengths = counts.cpu().numpy()  # all that the host learns of it
        kept = torch.nonzero_static(keep.flatten(), size=int(lengths.sum())).squeeze(1)
        kept = kept % keep.shape[1]
        *left, positions = (column.index_select(0, kept) for column in (*columns, self.positions))
        return tuple(left), PackedLayout(lengths, self.positions.device, positions)

    def pad(self, values: Tensor) -> Tensor:
        """Packed values [T, ...] -> [B, S, ...], zero behind a row's length."""
        rows = len(self.lengths)
        padded = values.new_zeros(rows * self._longest, *values.shape[1:])
        padded = padded.index_copy(0, self._padded(self._longest), values)
        return padded.unflatten(0, (rows, self._longest))

    def unpad(self, values: Tensor) -> Tensor:
        """Values [B, S, ...] -> packed [T, ...]."""
        return values.flatten(0, 1).index_select(0, self._padded(values.shape[1]))

    def row_sums(self, values: Tensor) -> Tensor:
        """Sum of packed values [..., T] over each row: [..., B]."""
        sums = values.new_zeros(*values.shape[:-1], len(self.lengths))
        return sums.index_add(-1, self.row_of_token, values)

    def _padded(self, length: int) -> Tensor:
        """Where each token lies in a flattened [B, length]: [T] int64."""
        return self.row_of_token * length + self._place


def _gather(states: Tensor, order: Tensor | None) -> Tensor:
    """states [T, ...] in another order; index_select adds gradients up in a fixed order."""
    return states if order is None else states.index_select(0, order)
