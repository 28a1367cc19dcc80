"""The chain on a GPU as one recording: the host launches it once, and waits for nothing in it.

A chain of some hundred small kernels takes longer to launch than to run. A CUDA graph holds them
all, if no size depends on what was computed: so rows, and what survives each cut, lie in tensors
of a fixed size (``layouts/fixed.py``), with room for some more tokens than were seen to survive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from trbert_deploy.config import ReductionConfig
from trbert_deploy.modeling.device_chain import DeviceChain, PackedRows
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.layouts.fixed import FixedLayout
from trbert_deploy.modeling.layouts.layout import RowsLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.runtime.chain import MAX_BATCH_TOKENS
from trbert_deploy.runtime.token_state import RowResult, TokenRow

Computed = tuple[Outputs, list[RowsLayout]]


@dataclass(frozen=True)
class Sizes:
    """What recordings differ in.

    Attributes:
        rows: B.
        longest: no row has more tokens.
        tokens: T, those that there is room for.
        equal: every row has ``longest`` tokens.
        dense: whether no token is removed.
    """

    rows: int
    longest: int
    tokens: int
    equal: bool
    dense: bool

    @classmethod
    def of(cls, batch: PackedRows, dense: bool) -> Sizes:
        """Those of a batch; rounded up, so that batches share recordings, if rows are unequal.

        Filler is computed for nothing, so the total is rounded up by a sixteenth at most; the
        longest row, which bounds attention alone, by a quarter.
        """
        lengths = batch.layout.lengths
        longest, total = int(lengths.max()), int(lengths.sum())
        if int(lengths.min()) == longest:
            return cls(len(lengths), longest, total, True, dense)
        longest = _up(longest, max(64, _power_of_two(longest) // 4))
        total = _up(total, max(256, _power_of_two(total) // 16))
        return cls(len(lengths), longest, total, False, dense)


class RecordedChain(DeviceChain):
    """As ``DeviceChain``, replayed from recordings; on a CPU their fixed sizes alone.

    The first batch of its sizes runs without a recording, and tells how much room survivors take;
    the second is recorded. A batch that needs more room than there is runs again without one.

    Attributes:
        SPARE: of one row, the share of the tokens seen to survive that there is room for besides;
            sums over rows vary less.
        MOST: recordings that are kept, each with memory of its own; the oldest goes first.
    """

    SPARE = 0.2
    MOST = 32
    #: Sizes that are known to have been met; the oldest are forgotten.
    MOST_SEEN = 4096

    def __init__(
        self,
        model: ReducedModel,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        max_batch_tokens: int = MAX_BATCH_TOKENS,
    ) -> None:
        super().__init__(model, device, precision, max_batch_tokens)
        self._recordings: dict[Sizes, Recording] = {}
        self._room: dict[Sizes, tuple[int, ...]] = {}

    def at(self, reduction: ReductionConfig) -> Self:
        other = super().at(reduction)
        other._recordings, other._room = {}, {}
        return other

    def run(self, rows: Sequence[TokenRow]) -> list[RowResult]:
        return self._run(rows, self._or_again)

    def reduced(self, batch: PackedRows) -> Computed:
        """As ``DeviceChain.reduced``; the results hold until the next call.

        Where ``overflowed`` of the last layout is True, they mean nothing.
        """
        return self._replayed(batch, Sizes.of(batch, dense=False), super().reduced)

    def dense(self, batch: PackedRows) -> Computed:
        """As ``DeviceChain.dense``; the results hold until the next call."""
        return self._replayed(batch, Sizes.of(batch, dense=True), super().dense)

    def _or_again(self, batch: PackedRows) -> Computed:
        outputs, layouts = self.reduced(batch)
        if any(isinstance(left, FixedLayout) and bool(left.overflowed) for left in layouts[-1:]):
            sizes = Sizes.of(batch, dense=False)
            del self._recordings[sizes]  # the next has more room
            outputs, layouts = super().reduced(batch)
            self._make_room(sizes, [int(layout.lengths.sum()) for layout in layouts])
        return outputs, layouts

    def _replayed(
        self, batch: PackedRows, sizes: Sizes, compute: Callable[[PackedRows], Computed]
    ) -> Computed:
        if self.model.hears_dropped or self.model.asked_token is not None:
            # Of how many tokens they are no recording knows.
            return compute(batch)
        recording = self._recordings.get(sizes)
        if recording is not None:
            return recording.replay(batch)
        if sizes in self._room:
            while len(self._recordings) >= self.MOST:
                del self._recordings[next(iter(self._recordings))]
            recording = Recording(sizes, self._room[sizes], compute, self.device)
            self._recordings[sizes] = recording
            return recording.replay(batch)
        computed = compute(batch)
        self._make_room(sizes, [int(layout.lengths.sum()) for layout in computed[1]])
        return computed

    def _make_room(self, sizes: Sizes, seen: Sequence[int]) -> None:
        """Note how many tokens survived each cut of a batch: the next may have some more."""
        more = 1 + self.SPARE / sizes.rows**0.5
        room = [min(_up(int(left * more), 64), sizes.tokens) for left in seen]
        before = self._room.pop(sizes, (0,) * len(room))
        self._room[sizes] = tuple(map(max, room, before))
        if len(self._room) > self.MOST_SEEN:
            del self._room[next(iter(self._room))]


class Recording:
    """A chain over rows of fixed sizes."""

    def __init__(
        self,
        sizes: Sizes,
        room: tuple[int, ...],
        compute: Callable[[PackedRows], Computed],
        device: torch.device,
    ) -> None:
        self._sizes, self._room, self._compute = sizes, room, compute

        def filled(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(sizes.tokens, dtype=dtype, device=device)

        step = sizes.longest if sizes.equal else 1
        self._offsets = step * torch.arange(sizes.rows + 1, dtype=torch.int32, device=device)
        self._columns = (filled(torch.int64), filled(torch.int64), filled(torch.bool))
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._record()
        else:  # as a recording would, so that tests see what it meets
            self._run()

    def replay(self, batch: PackedRows) -> Computed:
        """Run the recording on a batch of its sizes."""
        total = len(batch.input_ids)
        columns = (batch.input_ids, batch.token_type_ids, batch.protected)
        for column, values in zip(self._columns, columns, strict=True):
            column[:total].copy_(values)
        self._offsets.copy_(batch.layout.offsets)
        if self._graph is None:
            return self._run()
        self._graph.replay()
        return self._computed

    def _run(self) -> Computed:
        sizes = self._sizes
        layout = FixedLayout(
            self._offsets, sizes.tokens, sizes.longest, self._room, equal=sizes.equal
        )
        return self._compute(PackedRows(*self._columns, layout))

    def _record(self) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), torch.inference_mode():
            for _ in range(2):  # libraries choose kernels and take memory
                self._run()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), torch.inference_mode():
            self._computed = self._run()


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def _power_of_two(number: int) -> int:
    """The largest that is no larger."""
    return 1 << (number.bit_length() - 1)
