"""Rows one behind the other, without padding: training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trbert_deploy.batching import group_by_length
from trbert_deploy.modeling.layouts.layout import RowGroup, ScoreBias, attend_within
from trbert_deploy.modeling.memo import Memo


class PackedLayout(Memo):
    """Rows packed one behind the other in a tensor [T, H], without padding between them.

    Everything but attention runs on the packed tokens. Attention runs once for all rows of
    one length, so that it needs neither padding nor mask.

    Args:
        lengths: tokens per row, in packed order; T is their sum.
        device: where the token states live.
        positions: [T] int64, where the tokens stood in their rows; None for whole rows.

    Attributes:
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
        self._whole = positions is None
        if positions is None:
            places = np.concatenate([np.arange(length) for length in lengths])
            positions = torch.from_numpy(places).to(device)
        self.positions = positions
        self._row_groups: list[RowGroup] | None = None

    def positions_of(self, tokens: Tensor) -> Tensor:
        return self.positions

    def first(self, hidden: Tensor) -> Tensor:
        return hidden.index_select(0, self.starts)

    def mean(self, hidden: Tensor) -> Tensor:
        sums = self.row_sums(hidden.float().T).T  # [B, H]
        return sums / torch.from_numpy(self.lengths).to(sums.device)[:, None]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_heads: int,
        bias: ScoreBias | None = None,
    ) -> Tensor:
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
        return _gather(torch.cat(contexts), self._back)

    def _grouped(self, states: Tensor) -> Sequence[Tensor]:
        """States [T, ...], those of the rows of one length together."""
        sizes = [batch * length for batch, length in self._shapes]
        return _gather(states, self._order).split(sizes)

    def _groups(self) -> list[RowGroup]:
        if self._row_groups is None and self._whole:
            device = self.positions.device
            whole = (torch.arange(length, device=device) for _, length in self._shapes)
            self._row_groups = [RowGroup(positions[None]) for positions in whole]
        elif self._row_groups is None:
            parts = zip(self._grouped(self.positions), self._shapes, strict=True)
            self._row_groups = [RowGroup(part.unflatten(0, shape)) for part, shape in parts]
        return self._row_groups

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


def _gather(states: Tensor, order: Tensor | None) -> Tensor:
    """states [T, ...] in another order; index_select adds gradients up in a fixed order."""
    return states if order is None else states.index_select(0, order)
