"""The chain: segments one after the other, with fewer tokens behind every cut.

Rows are independent. Before each segment the rows are grouped by what is left of them
(batching.py), so that tensors are physically shorter and nothing of them is padding, or little
where a backend likes larger batches; then a mask keeps it from changing a result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.batching import group_by_length, split_by_tokens
from trbert_deploy.bundle.bundle import (
    ATTENTION_MASK,
    DENSE,
    HIDDEN,
    HIDDEN_OUT,
    INPUT_IDS,
    KEEP_LOGIT,
    LOGITS,
    TOKEN_TYPE_IDS,
    segment_name,
)
from trbert_deploy.config import ReductionConfig, Segment
from trbert_deploy.runtime.backends.backend import Backend, Tensors
from trbert_deploy.selection.select import OperatingPoint, select


@dataclass(frozen=True)
class TokenRow:
    """One tokenized text.

    Attributes:
        input_ids, token_type_ids: [S] int64, special tokens included, no padding.
    """

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.input_ids)

    def part(self, places: Sequence[int]) -> TokenRow:
        """The tokens at ``places``."""
        return TokenRow(self.input_ids[places], self.token_type_ids[places])


@dataclass(frozen=True)
class RowResult:
    """What the chain says of one row.

    Attributes:
        logits: [C] float32.
        kept: for each cut, the positions [K] int64 in the row's tokens that survived it.
    """

    logits: NDArray[np.float32]
    kept: tuple[NDArray[np.int64], ...]


def fates_apart(one: RowResult, other: RowResult) -> int:
    """Tokens of a row that one side keeps and the other drops, summed over the cuts."""
    return sum(
        len(np.setxor1d(ours, theirs, assume_unique=True))
        for ours, theirs in zip(one.kept, other.kept, strict=True)
    )


def survivor_agreement(
    rows: Sequence[TokenRow], expected: Sequence[RowResult], received: Sequence[RowResult]
) -> float:
    """Share of the rows' tokens, cut by cut, that meet one fate on both sides; 1 without cuts."""
    pairs = zip(expected, received, strict=True)
    differing = sum(fates_apart(one, other) for one, other in pairs)
    total = sum(len(row) * len(one.kept) for row, one in zip(rows, expected, strict=True))
    return 1.0 - differing / max(total, 1)


@dataclass
class Timing:
    """Where the time of a run went.

    Attributes:
        graph_seconds: inside the graphs, by graph name.
        total_seconds: the whole run.
    """

    graph_seconds: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0

    @property
    def outside_share(self) -> float:
        """Share of the time that was spent between the graphs."""
        return 1.0 - sum(self.graph_seconds.values()) / self.total_seconds


@dataclass
class _Row:
    """A row on its way.

    Attributes:
        index: which of the given rows it is.
        tokens: the row as it was given.
        positions: [S] int64, where its survivors stood in the text.
        hidden: [S, H] float32, their states behind the last cut; None before the first.
        kept: for each cut so far, the survivors' positions.
    """

    index: int
    tokens: TokenRow
    positions: NDArray[np.int64]
    hidden: NDArray[np.float32] | None = None
    kept: tuple[NDArray[np.int64], ...] = ()

    def __len__(self) -> int:
        return len(self.positions)


#: Tokens on their way at a time, if nobody says otherwise.
MAX_BATCH_TOKENS = 16384


class Chain:
    """Runs rows of tokens through the segments of a backend.

    Args:
        backend: runs the graphs.
        reduction: the cuts with their rules.
        num_layers: layers of the encoder.
        max_batch_tokens: tokens that are on their way at a time, in one batch or in several; a
            longer row goes alone.
        max_padding: highest share of a batch's slots that may be padding; None for what the
            backend likes.
        dense_below: rows of fewer tokens keep all of them, in the dense graph: where three short
            calls take longer than one.
    """

    def __init__(
        self,
        backend: Backend,
        reduction: ReductionConfig,
        num_layers: int,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        max_padding: float | None = None,
        dense_below: int = 0,
    ) -> None:
        self.backend = backend
        self.reduction = reduction
        self._num_layers = num_layers
        self.segments = reduction.segments(num_layers)
        self.max_batch_tokens = max_batch_tokens
        self.max_padding = backend.max_padding if max_padding is None else max_padding
        self.dense_below = dense_below if reduction.cuts else 0

    def at(self, point: OperatingPoint) -> Chain:
        """The same chain at another operating point, on the same graphs.

        Raises:
            ConfigError: a number of tokens that is no multiple of what a cut rounds to.
        """
        reduction = self.reduction.at(point)
        below = point.dense_below if isinstance(point.dense_below, int) else self.dense_below
        limits = (self.max_batch_tokens, self.max_padding, below)
        return Chain(self.backend, reduction, self._num_layers, *limits)

    def run(self, rows: Sequence[TokenRow], timing: Timing | None = None) -> list[RowResult]:
        """Classify rows, dropping tokens at every cut.

        Args:
            rows: any number, of any lengths.
            timing: filled with where the time went.

        Returns:
            One result per row, in the given order.
        """
        short = [len(row) < self.dense_below for row in rows]
        if not any(short):
            return self._run(rows, self.segments, timing)
        pairs = list(zip(rows, short, strict=True))
        dense = iter(self.run_dense([row for row, is_short in pairs if is_short], timing))
        reduced = iter(
            self._run([row for row, is_short in pairs if not is_short], self.segments, timing)
        )
        return [
            self._keeping_all(row, next(dense)) if is_short else next(reduced)
            for row, is_short in pairs
        ]

    def run_dense(self, rows: Sequence[TokenRow], timing: Timing | None = None) -> list[RowResult]:
        """Classify rows with the dense model: grouped in the same way, no token removed."""
        return self._run(rows, (), timing)

    def _run(
        self, rows: Sequence[TokenRow], segments: Sequence[Segment], timing: Timing | None
    ) -> list[RowResult]:
        timing = timing if timing is not None else Timing()
        start = time.perf_counter()
        results: dict[int, RowResult] = {}
        for window in split_by_tokens([len(row) for row in rows], self.max_batch_tokens):
            waiting = [_Row(index, rows[index], np.arange(len(rows[index]))) for index in window]
            for segment in segments[:-1]:
                # All rows pass a cut before the next segment, so that whichever rows kept equally
                # many tokens go on together.
                for batch in self._batches(waiting):
                    self._select(segment, batch, timing)
            last = DENSE if len(segments) < 2 else segment_name(segments[-1].index)
            for batch in self._batches(waiting):
                logits = self._call(last, batch, timing)[LOGITS]
                for row, row_logits in zip(batch, logits, strict=True):
                    results[row.index] = RowResult(row_logits, row.kept)
        timing.total_seconds += time.perf_counter() - start
        return [results[index] for index in range(len(rows))]

    def _keeping_all(self, row: TokenRow, dense: RowResult) -> RowResult:
        """What the dense model says, as the result of cuts that removed nothing."""
        return RowResult(dense.logits, (np.arange(len(row)),) * len(self.reduction.cuts))

    def _batches(self, rows: Sequence[_Row]) -> list[list[_Row]]:
        if len(rows) == 1:  # most requests: nothing to group
            return [list(rows)]
        lengths = [len(row) for row in rows]
        groups = group_by_length(lengths, self.max_batch_tokens, self.max_padding)
        return [[rows[place] for place in group] for group in groups]

    def _select(self, segment: Segment, batch: Sequence[_Row], timing: Timing) -> None:
        """Run a segment that ends in a cut, and leave each row what survives it."""
        assert segment.cut is not None
        outputs = self._call(segment_name(segment.index), batch, timing)
        logits = outputs[KEEP_LOGIT]
        lengths = [len(row) for row in batch]
        unpadded = min(lengths) == logits.shape[1]
        keep = select(logits, None if unpadded else np.array(lengths), segment.cut.rule)
        for row, hidden, row_keep in zip(batch, outputs[HIDDEN_OUT], keep, strict=True):
            (survivors,) = row_keep.nonzero()
            row.hidden = hidden.take(survivors, axis=0)
            row.positions = row.positions.take(survivors)
            row.kept = (*row.kept, row.positions)

    def _call(self, name: str, batch: Sequence[_Row], timing: Timing) -> Tensors:
        inputs = _inputs(batch)
        start = time.perf_counter()
        outputs = self.backend.graph(name)(inputs)
        elapsed = time.perf_counter() - start
        timing.graph_seconds[name] = timing.graph_seconds.get(name, 0.0) + elapsed
        return outputs


def _inputs(batch: Sequence[_Row]) -> dict[str, np.ndarray]:
    """A batch as a graph takes it; with a mask if rows are padded (see ``Graph``)."""
    states = [row.hidden for row in batch if row.hidden is not None]
    if states:
        inputs = {HIDDEN: _stack(states)}
    else:
        inputs = {
            INPUT_IDS: _stack([row.tokens.input_ids for row in batch]),
            TOKEN_TYPE_IDS: _stack([row.tokens.token_type_ids for row in batch]),
        }
    if len(batch) == 1:
        return inputs
    lengths = np.array([[len(row)] for row in batch])
    if lengths.min() < lengths.max():
        inputs[ATTENTION_MASK] = np.arange(lengths.max()) < lengths
    return inputs


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays [S, ...] as one [B, S, ...], the shorter ones padded with zeros at the end."""
    if len(arrays) == 1:
        return arrays[0][None]
    longest = max(map(len, arrays))
    if min(map(len, arrays)) == longest:
        return np.stack(arrays)
    stacked = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), arrays[0].dtype)
    for place, array in enumerate(arrays):
        stacked[place, : len(array)] = array
    return stacked
