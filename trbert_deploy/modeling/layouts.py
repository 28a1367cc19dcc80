"""Which tokens stand beside each other: padded rows, or packed rows.

A layout knows how token states are laid out in a tensor, where each token stood in its row as it
was given, and computes attention within each row. The encoder is written once and runs under any
of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from trbert_deploy.batching import group_by_length
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


def heads_of(states: Tensor, num_heads: int) -> Tensor:
    """[B, S, H] -> [B, N, S, D]."""
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None
) -> Tensor:
    """Multi-head attention over [B, S, H]; mask [B or 1, N or 1, S, S], bool or float, or None."""
    query, key, value = (heads_of(states, num_heads) for states in (query, key, value))
    context = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return context.transpose(1, 2).flatten(2)  # [B, S, H]


def _or_itself(seen: Tensor) -> Tensor:
    """seen [B, 1, S, S] bool, and every token sees itself.

    A padded token may be far from every real one: it would be no number, and spoil others' sums
    though they give it no weight.
    """
    place = torch.arange(seen.shape[-1], device=seen.device)
    return seen | (place[:, None] == place)


class PaddedLayout(Memo):
    """Rows of one tensor [B, S, H], those shorter than S padded at the end.

    Args:
        mask: [B, S] bool, True where a token is; None when no row is padded.
        positions: [B, S] int64, where the tokens stood in their rows; None for whole rows.
    """

    def __init__(self, mask: Tensor | None, positions: Tensor | None = None) -> None:
        super().__init__()
        self.mask = mask
        self.positions = positions
        self._group: RowGroup | None = None

    def positions_of(self, tokens: Tensor) -> Tensor:
        if self.positions is None:
            self.positions = torch.arange(tokens.shape[1], device=tokens.device)[None, :]
        return self.positions

    def first(self, hidden: Tensor) -> Tensor:
        return hidden[:, 0]

    def mean(self, hidden: Tensor) -> Tensor:
        if self.mask is None:
            return hidden.mean(1)
        real = self.mask[..., None]
        return torch.where(real, hidden, 0.0).sum(1) / real.sum(1)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_heads: int,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        return _attend(query, key, value, num_heads, self.scores_mask(query, bias))

    def scores_mask(self, query: Tensor, bias: ScoreBias | None) -> Tensor | None:
        """Mask and bias as attention takes them: [B or 1, N or 1, S, S], bool or float, or None."""
        visible = None
        if self.mask is not None:
            # Spelled out to [B, 1, S, S]: runtimes do not agree on a broadcast mask.
            batch, length = self.mask.shape
            visible = self.mask[:, None, None, :].expand(batch, 1, length, length)
        if bias is None:
            return visible
        if self._group is None:
            self._group = RowGroup(self.positions_of(query))
        added = bias.compute(self._group, *bias.per_token)
        if visible is None:
            return added
        if added.dtype == torch.bool:
            return self.once(added, lambda: _or_itself(added & visible))
        return torch.where(visible, added, -torch.inf)


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
                contexts.append(_attend(q, k, v, num_heads, mask).flatten(0, 1))
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

    def __init__(self, layout: PackedLayout, gate: Tensor) -> None:
        self.layout = layout
        self.gate = gate

    def positions_of(self, tokens: Tensor) -> Tensor:
        return self.layout.positions_of(tokens)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        return self.layout.once(key, compute)

    def first(self, hidden: Tensor) -> Tensor:
        return self.layout.first(hidden)

    def mean(self, hidden: Tensor) -> Tensor:
        weighted = self.layout.row_sums((hidden.float() * self.gate[:, None]).T).T  # [B, H]
        return weighted / self.layout.row_sums(self.gate)[:, None]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_heads: int,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        width = query.shape[-1] // num_heads
        wide = width + self.EXTRA

        def widen(states: Tensor) -> Tensor:  # [..., H] -> [..., N, wide]
            return pad(states.unflatten(-1, (num_heads, width)), (0, self.EXTRA))

        # The layout underneath divides scores by the root of the wider head.
        query = widen(query) * (wide / width) ** 0.5
        ones = pad(value.new_ones(*value.shape[:-1], num_heads, 1), (width, self.EXTRA - 1))
        value = (widen(value) + ones) * self.gate[..., None, None]
        states = self.layout.attend(
            query.flatten(-2), widen(key).flatten(-2), value.flatten(-2), num_heads, bias
        )
        context = states.unflatten(-1, (num_heads, wide))
        total = context[..., width : width + 1]
        # Where every token in sight of a closed one is closed, too, it sees nothing: 0 / 1.
        return (context[..., :width] / torch.where(total > 0, total, 1.0)).flatten(-2)


def _gather(states: Tensor, order: Tensor | None) -> Tensor:
    """states [T, ...] in another order; index_select adds gradients up in a fixed order."""
    return states if order is None else states.index_select(0, order)
