"""The chain: segments one after the other, with fewer tokens behind every cut.

Rows are independent. Before each segment the rows are grouped by what is left of them
(batching.py), so that tensors are physically shorter and nothing of them is padding, or little
where a backend likes larger batches; then a mask keeps it from changing a result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.batching import NO_PADDING, Padding, group_by_length, split_by_tokens
from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.bundle.manifest import (
    DENSE,
    EXIT_LOGITS,
    HEAD,
    HIDDEN,
    HIDDEN_OUT,
    INPUT_IDS,
    dropped_name,
    segment_name,
)
from trbert_deploy.config import ReductionConfig, Segment
from trbert_deploy.errors import ConfigError
from trbert_deploy.runtime.arrays import States, stack
from trbert_deploy.runtime.backends.backend import Backend, RowsBackend, Tensors
from trbert_deploy.runtime.batch_inputs import batch_inputs
from trbert_deploy.runtime.gathering import Said, gathered, only_means, said
from trbert_deploy.runtime.scorers import PolicyScorer, Scorer
from trbert_deploy.runtime.token_state import RowResult, TokenRow, TokenState
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.selection.select import select
from trbert_deploy.tasks.outputs import asked_token, hear_dropped, rows_of_outputs
from trbert_deploy.tasks.task import Task


@dataclass
class Timing:
    """Where the time of a run went.

    Attributes:
        graph_seconds: inside the graphs, by graph name.
        total_seconds: the whole run.
        tokens, slots: of all batches of the segments, and the places that these take with padding.
    """

    graph_seconds: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0
    tokens: int = 0
    slots: int = 0

    @property
    def outside_share(self) -> float:
        """Share of the time that was spent between the graphs."""
        return 1.0 - sum(self.graph_seconds.values()) / self.total_seconds


#: What the time is noted under where a backend runs all of a chain.
ALL_GRAPHS = "all"
#: Tokens on their way at a time, if nobody says otherwise.
MAX_BATCH_TOKENS = 16384


class Chain:
    """Runs rows of tokens through the segments of a backend.

    Args:
        backend: runs the graphs, or whole rows.
        reduction: the cuts with their rules.
        num_layers: layers of the encoder.
        max_batch_tokens: tokens that are on their way at a time, in one batch or in several; a
            longer row goes alone.
        padding: what it is worth that rows share a call; None for what the backend likes.
        dense_below: rows of fewer tokens keep all of them, in the dense graph: where three short
            calls take longer than one.
        scorer: gives tokens their keep logits; the policy by default.
        task: what the model answers; may be left out where all of it is of rows, by what survives
            of them, and none leaves at an exit.

    Attributes:
        call_tokens: slots of a call of a graph, as the backend likes; a longer row goes alone.
    """

    def __init__(
        self,
        backend: Backend | RowsBackend,
        reduction: ReductionConfig,
        num_layers: int,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        padding: Padding | None = None,
        dense_below: int = 0,
        scorer: Scorer | None = None,
        task: Task | None = None,
    ) -> None:
        self.backend = backend
        self.reduction = reduction
        self._num_layers = num_layers
        self.segments = reduction.segments(num_layers)
        self.max_batch_tokens = max_batch_tokens
        own, most = (NO_PADDING, MOST_TOKENS)
        if not isinstance(backend, RowsBackend):
            own, most = backend.padding, backend.call_tokens
            self._arrays = backend.arrays
        self.padding = own if padding is None else padding
        self.call_tokens = min(max_batch_tokens, most)
        self.dense_below = dense_below if reduction.cuts else 0
        self.scorer: Scorer = scorer or PolicyScorer()
        self.task = task
        self.outputs = () if task is None else tuple(task.outputs)
        self._hears_dropped = hear_dropped(self.outputs)
        self._asked_token = asked_token(self.outputs)

    def open(self) -> None:
        """Open the graphs that rows will pass now, not when the first of them does."""
        if isinstance(self.backend, RowsBackend):
            few = np.zeros(2, np.int64)
            for _ in range(2):  # what is compiled or recorded is so when sizes come again
                self.run([TokenRow(few, few)])
            return
        for segment in self.segments[:-1]:
            self.backend.graph(segment_name(segment.index))
            if self._hears_dropped:
                self.backend.graph(dropped_name(segment.index))
        self.backend.graph(_last_graph(self.segments))
        if self.dense_below:
            self.backend.graph(DENSE)
        if self._asked_token is not None:
            self.backend.graph(HEAD)

    def at(self, point: OperatingPoint) -> Chain:
        """The same chain at another operating point, on the same graphs.

        Raises:
            ConfigError: a number of tokens that is no multiple of what a cut rounds to, or rows
                are to leave at exits where there are none, or that the backend does not run.
        """
        reduction = self.reduction.at(point)
        if point.moves_exits and isinstance(self.backend, RowsBackend):
            raise ConfigError(
                f"backend {self.backend.description['backend']} answers at the end of the chain "
                "alone: leave exit_confidence and exit_patience out, or choose another backend"
            )
        below = point.dense_below if isinstance(point.dense_below, int) else self.dense_below
        return self._with(reduction=reduction, dense_below=below)

    def to_the_end(self) -> Chain:
        """The same chain, where no row leaves at an exit."""
        if self.reduction.exits is None:
            return self
        return self._with(reduction=self.reduction.with_exits(ExitRule()))

    def scored_by(self, scorer: Scorer) -> Chain:
        """The same chain, whose tokens are chosen by another scorer, whatever their number."""
        return self._with(scorer=scorer, dense_below=0)

    def _with(self, **changes: Any) -> Chain:
        """The same graphs, with some of the arguments changed."""
        own: dict[str, Any] = {
            "reduction": self.reduction,
            "max_batch_tokens": self.max_batch_tokens,
            "padding": self.padding,
            "dense_below": self.dense_below,
            "scorer": self.scorer,
            "task": self.task,
        }
        return Chain(self.backend, num_layers=self._num_layers, **{**own, **changes})

    def run(self, rows: Sequence[TokenRow], timing: Timing | None = None) -> list[RowResult]:
        """Run rows, dropping tokens at every cut.

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
        """Run rows with the dense model: grouped in the same way, no token removed."""
        return self._run(rows, (), timing)

    def _run(
        self, rows: Sequence[TokenRow], segments: Sequence[Segment], timing: Timing | None
    ) -> list[RowResult]:
        timing = timing if timing is not None else Timing()
        start = time.perf_counter()
        if isinstance(self.backend, RowsBackend):
            computed = self._run_rows(self.backend, rows, self.reduction if segments else None)
            timing.total_seconds += time.perf_counter() - start
            timing.graph_seconds[ALL_GRAPHS] = timing.total_seconds
            return computed
        results: dict[int, RowResult] = {}
        for window in split_by_tokens([len(row) for row in rows], self.max_batch_tokens):
            waiting = [TokenState.of(index, rows[index]) for index in window]
            for segment in segments[:-1]:
                # All rows pass a cut before the next segment, so that whichever rows kept equally
                # many tokens go on together.
                batches = self._batches(waiting)
                for batch in batches:
                    results |= self._select(segment, batch, timing)
                # Rows whose states were computed together stay together, as far as they can.
                waiting = [row for batch in batches for row in batch if not row.left]
            last = _last_graph(segments)
            for batch in self._batches(waiting):
                outputs = self._call(last, batch, timing)
                if self._asked_token is None:
                    answers = rows_of_outputs(self.outputs, outputs, list(map(len, batch)))
                else:
                    answers = self._ask(batch, outputs[HIDDEN_OUT], timing)
                for row, answer in zip(batch, answers, strict=True):
                    if row.said:
                        answer = gathered(self.outputs, [*row.said, Said(row.positions, answer)])
                    results[row.index] = RowResult(answer, row.kept)
        timing.total_seconds += time.perf_counter() - start
        return [results[index] for index in range(len(rows))]

    def _run_rows(
        self, backend: RowsBackend, rows: Sequence[TokenRow], reduction: ReductionConfig | None
    ) -> list[RowResult]:
        """On a backend that chooses tokens itself.

        Raises:
            ConfigError: they are to be chosen by something else than the policies.
        """
        if reduction is not None and not isinstance(self.scorer, PolicyScorer):
            raise ConfigError(
                f"backend {backend.description['backend']} drops tokens by the policies alone: "
                "choose another backend for what is compared with them"
            )
        return backend.run_rows(rows, reduction, self.max_batch_tokens)

    def _keeping_all(self, row: TokenRow, dense: RowResult) -> RowResult:
        """What the dense model says, as the result of cuts that removed nothing."""
        return RowResult(dense.outputs, (np.arange(len(row)),) * len(self.reduction.cuts))

    def _batches(self, rows: Sequence[TokenState]) -> list[list[TokenState]]:
        if len(rows) == 1:  # most requests: nothing to group
            return [list(rows)]
        lengths = [len(row) for row in rows]
        groups = group_by_length(lengths, self.call_tokens, self.padding)
        return [[rows[place] for place in np.sort(group)] for group in groups]

    def _select(
        self, segment: Segment, batch: Sequence[TokenState], timing: Timing
    ) -> dict[int, RowResult]:
        """Run a segment that ends in a cut, and leave each row what survives it.

        Returns:
            What is said of the rows that leave here.
        """
        assert segment.cut is not None
        outputs = self._call(segment_name(segment.index), batch, timing)
        left = self._leaving(segment.index, batch, outputs)
        if len(left) == len(batch):
            return left
        logits = self.scorer.keep_logits(segment.index, batch, outputs)
        lengths = [len(row) for row in batch]
        unpadded = min(lengths) == logits.shape[1]
        protected = stack([row.protected for row in batch])
        rule = segment.cut.rule
        keep = select(logits, None if unpadded else np.array(lengths), rule, protected)
        hidden: States = outputs[HIDDEN_OUT]
        if self._hears_dropped:
            self._hear(segment.index, batch, hidden, keep, timing)
        keep[[row.left for row in batch]] = False  # nothing more is made of their states
        survivors = [row_keep.nonzero()[0] for row_keep in keep]
        states = self._arrays.rows(hidden, survivors)
        for row, row_survivors, row_states in zip(batch, survivors, states, strict=True):
            row.compact(row_survivors, row_states)
        return left

    def _leaving(
        self, cut: int, batch: Sequence[TokenState], outputs: Tensors
    ) -> dict[int, RowResult]:
        """What is said of those rows of a batch that leave with the answer of a cut's exit."""
        own = self.reduction.exits
        if own is None:
            return {}
        rules = [row.tokens.exit_rule or own for row in batch]
        if not any(rule.is_active for rule in rules):
            return {}
        assert self.task is not None  # whose answers tell how sure they are
        (output,) = self.outputs
        nothing = np.zeros(0, np.int64)
        left = {}
        for row, rule, logits in zip(batch, rules, outputs[EXIT_LOGITS], strict=True):
            answer = {output.name: logits[: len(row)] if output.per == "token" else logits}
            if row.said:
                answer = gathered(self.outputs, [*row.said, Said(row.positions, answer)])
            if row.exits.leaves(answer, rule, self.task):
                row.left = True
                kept = (*row.kept, *[nothing] * (len(self.reduction.cuts) - cut))
                left[row.index] = RowResult(answer, kept, exit=cut)
        return left

    def _hear(
        self,
        cut: int,
        batch: Sequence[TokenState],
        hidden: States,
        keep: NDArray[np.bool_],
        timing: Timing,
    ) -> None:
        """Note what the tokens of a batch say that a cut drops.

        Args:
            hidden: [B, S, H].
            keep: [B, S], which of them survive.
        """
        dropped = [
            (~row_keep[: len(row)]).nonzero()[0] for row, row_keep in zip(batch, keep, strict=True)
        ]
        states = self._arrays.rows(hidden, dropped)
        asking = zip(batch, dropped, states, strict=True)
        leaving = [each for each in asking if len(each[1]) and not each[0].left]
        if not leaving:
            return
        means = only_means(self.outputs)
        together = self._arrays.means if means else self._arrays.batch
        asked = together([row_states for _, _, row_states in leaving])
        values = self._run_graph(dropped_name(cut), {HIDDEN: asked}, timing)
        for place, (row, places, _) in enumerate(leaving):
            count = 1 if means else len(places)
            own = {name: each[place, :count] for name, each in values.items()}
            row.said.append(said(self.outputs, row.positions.take(places), own))

    def _ask(
        self, batch: Sequence[TokenState], hidden: States, timing: Timing
    ) -> list[dict[str, NDArray[np.float32]]]:
        """What those tokens of a batch say that are asked for, row by row.

        Args:
            hidden: [B, S, H], last states.
        """
        asked = [(row.column(INPUT_IDS) == self._asked_token).nonzero()[0] for row in batch]
        counts = list(map(len, asked))
        if not max(counts):  # no graph takes no token
            asked = [np.zeros(1, np.int64)] * len(batch)
        states = self._arrays.batch(self._arrays.rows(hidden, asked))
        values = self._run_graph(HEAD, {HIDDEN: states}, timing)
        return rows_of_outputs(self.outputs, values, list(map(len, batch)), counts)

    def _call(self, name: str, batch: Sequence[TokenState], timing: Timing) -> Tensors:
        assert not isinstance(self.backend, RowsBackend)  # which runs no single graph
        lengths = list(map(len, batch))
        timing.tokens += sum(lengths)
        timing.slots += len(batch) * max(lengths)
        inputs = batch_inputs(self.backend.graph(name).inputs, batch, self._arrays)
        return self._run_graph(name, inputs, timing)

    def _run_graph(self, name: str, inputs: Tensors, timing: Timing) -> Tensors:
        assert not isinstance(self.backend, RowsBackend)
        graph = self.backend.graph(name)
        start = time.perf_counter()
        outputs = graph(inputs)
        elapsed = time.perf_counter() - start
        timing.graph_seconds[name] = timing.graph_seconds.get(name, 0.0) + elapsed
        return outputs


def _last_graph(segments: Sequence[Segment]) -> str:
    """Name of the graph that answers; the dense one where nothing is cut."""
    return DENSE if len(segments) < 2 else segment_name(segments[-1].index)
