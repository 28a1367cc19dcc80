"""The chain: segments one after the other, with fewer tokens behind every cut.

Rows are independent. Before each segment the rows that are left are grouped by length
(batching.py), so that tensors are physically shorter and little of them is padding; a mask
keeps what padding there is from changing a result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.batching import group_by_length
from trbert_deploy.bundle import (
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
from trbert_deploy.config import ReductionConfig
from trbert_deploy.runtime.backend import Backend, Tensors
from trbert_deploy.selection import select


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


@dataclass(frozen=True)
class RowResult:
    """What the chain says of one row.

    Attributes:
        logits: [C] float32.
        kept: for each cut, the positions [K] int64 in the row's tokens that survived it.
    """

    logits: NDArray[np.float32]
    kept: tuple[NDArray[np.int64], ...]


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
class _Survivor:
    """A row on its way: what is left of it, and where in the text that stood."""

    row: int
    hidden: NDArray[np.float32]  # [S, H]
    positions: NDArray[np.int64]  # [S]
    kept: tuple[NDArray[np.int64], ...] = ()


class Chain:
    """Runs rows of tokens through the segments of a backend.

    Args:
        backend: runs the graphs.
        reduction: the cuts with their rules.
        num_layers: layers of the encoder.
        max_batch_tokens: token slots of the largest batch that one graph is given.
        max_padding: highest share of a batch's slots that may be padding.
    """

    def __init__(
        self,
        backend: Backend,
        reduction: ReductionConfig,
        num_layers: int,
        max_batch_tokens: int = 16384,
        max_padding: float = 0.05,
    ) -> None:
        self.backend = backend
        self.reduction = reduction
        self.segments = reduction.segments(num_layers)
        self.max_batch_tokens = max_batch_tokens
        self.max_padding = max_padding

    def run(self, rows: Sequence[TokenRow], timing: Timing | None = None) -> list[RowResult]:
        """Classify rows, dropping tokens at every cut.

        Args:
            rows: any number, of any lengths.
            timing: filled with where the time went.

        Returns:
            One result per row, in the given order.
        """
        timing = timing if timing is not None else Timing()
        start = time.perf_counter()
        results: dict[int, RowResult] = {}
        for group in self._groups([len(row) for row in rows]):
            members = [rows[index] for index in group]
            inputs, mask = _token_batch(members)
            survivors = [
                _Survivor(int(index), np.empty((0, 0), np.float32), np.arange(len(row)))
                for index, row in zip(group, members, strict=True)
            ]
            self._run_group(0, inputs, mask, survivors, results, timing)
        timing.total_seconds += time.perf_counter() - start
        return [results[index] for index in range(len(rows))]

    def run_dense(self, rows: Sequence[TokenRow], timing: Timing | None = None) -> list[RowResult]:
        """Classify rows with the dense model: the same batches, no token removed."""
        timing = timing if timing is not None else Timing()
        start = time.perf_counter()
        results: dict[int, RowResult] = {}
        for group in self._groups([len(row) for row in rows]):
            inputs, _ = _token_batch([rows[index] for index in group])
            logits = self._call(DENSE, inputs, timing)[LOGITS]
            for index, row_logits in zip(group, logits, strict=True):
                results[int(index)] = RowResult(row_logits, ())
        timing.total_seconds += time.perf_counter() - start
        return [results[index] for index in range(len(rows))]

    def _groups(self, lengths: list[int]) -> list[NDArray[np.int64]]:
        return group_by_length(lengths, self.max_batch_tokens, self.max_padding)

    def _run_group(
        self,
        index: int,
        inputs: dict[str, np.ndarray],
        mask: NDArray[np.bool_],
        survivors: list[_Survivor],
        results: dict[int, RowResult],
        timing: Timing,
    ) -> None:
        """Run segment ``index`` on one batch, then what follows on regrouped survivors."""
        segment = self.segments[index]
        outputs = self._call(
            DENSE if len(self.segments) == 1 else segment_name(index), inputs, timing
        )
        if segment.cut is None:
            for survivor, logits in zip(survivors, outputs[LOGITS], strict=True):
                results[survivor.row] = RowResult(logits, survivor.kept)
            return
        lengths = mask.sum(axis=1)
        keep = select(outputs[KEEP_LOGIT], lengths, segment.cut.rule)
        for survivor, hidden, row_keep in zip(survivors, outputs[HIDDEN_OUT], keep, strict=True):
            survivor.hidden = hidden[row_keep]
            survivor.positions = survivor.positions[row_keep[: len(survivor.positions)]]
            survivor.kept = (*survivor.kept, survivor.positions)
        for group in self._groups([len(survivor.positions) for survivor in survivors]):
            members = [survivors[place] for place in group]
            hidden, mask = _hidden_batch(members)
            batch = {HIDDEN: hidden, ATTENTION_MASK: mask}
            self._run_group(index + 1, batch, mask, members, results, timing)

    def _call(self, name: str, inputs: dict[str, np.ndarray], timing: Timing) -> Tensors:
        start = time.perf_counter()
        outputs = self.backend.graph(name)(inputs)
        elapsed = time.perf_counter() - start
        timing.graph_seconds[name] = timing.graph_seconds.get(name, 0.0) + elapsed
        return outputs


def _token_batch(rows: Sequence[TokenRow]) -> tuple[dict[str, np.ndarray], NDArray[np.bool_]]:
    """Rows of tokens as the first segment's inputs, [B, S], and their mask."""
    longest = max(len(row) for row in rows)
    input_ids = np.zeros((len(rows), longest), np.int64)
    token_type_ids = np.zeros((len(rows), longest), np.int64)
    for place, row in enumerate(rows):
        input_ids[place, : len(row)] = row.input_ids
        token_type_ids[place, : len(row)] = row.token_type_ids
    mask = np.arange(longest) < np.array([[len(row)] for row in rows])
    return {INPUT_IDS: input_ids, TOKEN_TYPE_IDS: token_type_ids, ATTENTION_MASK: mask}, mask


def _hidden_batch(
    survivors: Sequence[_Survivor],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Compaction: survivors' states as one tensor [B, K, H], and its mask [B, K]."""
    if len(survivors) == 1:
        hidden = survivors[0].hidden[None]
        return hidden, np.ones(hidden.shape[:2], np.bool_)
    lengths = np.array([[len(survivor.positions)] for survivor in survivors])
    width = survivors[0].hidden.shape[1]
    batch = np.zeros((len(survivors), int(lengths.max()), width), np.float32)
    for place, survivor in enumerate(survivors):
        batch[place, : len(survivor.hidden)] = survivor.hidden
    return batch, np.arange(batch.shape[1]) < lengths
