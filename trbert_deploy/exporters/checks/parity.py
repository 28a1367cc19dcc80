"""Compares exported graphs, and the chain made of them, with PyTorch.

Differences are the largest, never the mean, relative to the reference's own largest value
where that is above 1. Survivors are a function of the keep logits alone, so where these agree
within the tolerance only tokens that close to the boundary can meet another fate. That this is
why rows part is checked, and how many do is limited (``limits.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.bundle.manifest import (
    ATTENTION_MASK,
    DENSE,
    EXIT_LOGITS,
    HEAD,
    HIDDEN,
    HIDDEN_OUT,
    INPUT_IDS,
    KEEP_LOGIT,
    MATCHES,
    POSITIONS,
    PROTECTED,
    TOKEN_TYPE_IDS,
    dropped_name,
    segment_name,
    states_name,
)
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.errors import ParityError
from trbert_deploy.exporters.checks.limits import LIMITS, Limits
from trbert_deploy.runtime.backends.backend import Backend, Graph, Tensors
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.samples import RowMaker
from trbert_deploy.runtime.scorers import Scorer
from trbert_deploy.runtime.token_state import (
    RowResult,
    TokenRow,
    TokenState,
    fates_apart,
    survivor_agreement,
)
from trbert_deploy.selection.rules import SelectionRule
from trbert_deploy.selection.select import first_token, select
from trbert_deploy.tasks.outputs import asked_token
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.task import Task, mean_agreement

LONGEST_CHECKED = 2048
#: Tokens of a row that the head is compared on, where it is of some alone.
_MOST_ASKED = 8


@dataclass(frozen=True)
class GraphParity:
    """How far one graph is from PyTorch.

    Attributes:
        graph: its name.
        shapes: batch x length pairs that were compared.
        max_difference: largest relative difference per output.
        survivor_agreement: share of tokens on which both sides agree to keep or drop.
        tolerance: largest difference allowed.
    """

    graph: str
    shapes: tuple[tuple[int, int], ...]
    max_difference: dict[str, float]
    survivor_agreement: float
    tolerance: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ResultParity:
    """How far results are from the reference's.

    Attributes:
        rows: rows that were compared, at several lengths.
        rows_apart: how many of them have other survivors.
        max_output_difference: largest relative difference of outputs, over rows with the same
            survivors.
        survivor_agreement: share of tokens with the same fate at every cut.
        answer_agreement: how far the answers are the same, as the task says.
        tolerance: largest difference of outputs allowed.
    """

    rows: int
    rows_apart: int
    max_output_difference: float
    survivor_agreement: float
    answer_agreement: float
    tolerance: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ChainParity(ResultParity):
    """How far the whole chain, and the dense model beside it, are from the reference.

    Attributes:
        keep_logit_difference: largest relative difference of keep logits, at every cut that the
            same tokens reach on both sides.
        dense_output_difference: largest relative difference of the dense model's outputs, where no
            token can differ.
    """

    keep_logit_difference: float
    dense_output_difference: float


def check_shapes(traced: int, maximum: int) -> tuple[tuple[int, int], ...]:
    """(batch, length) to compare: 1 and 3; 1, 2, the traced length +- 1 and the maximum.

    Of a model for very long rows the maximum is left at ``LONGEST_CHECKED``: attention over the
    longest would take gigabytes, in PyTorch and in every candidate.
    """
    maximum = min(maximum, LONGEST_CHECKED)
    lengths = {1, 2, traced - 1, traced, traced + 1, maximum}
    return tuple(
        (batch, length)
        for length in sorted(length for length in lengths if 1 <= length <= maximum)
        for batch in (1, 3)
    )


def compare_graphs(
    reference: Backend,
    candidate: Backend,
    encoder: EncoderSpec,
    reduction: ReductionConfig,
    rows_of: RowMaker,
    shapes: Sequence[tuple[int, int]],
    limits: Limits = LIMITS["fp32"],
    reference_name: str = "PyTorch",
    without_padding: Sequence[Backend] = (),
    advice: str = "",
    states_after: Sequence[int] = (),
) -> Iterator[GraphParity]:
    """Run every graph on both backends, over batches with padding and without, and compare.

    Args:
        reference, candidate: backends that open the same graphs.
        rows_of: (length, count) -> that many rows of exactly that length.
        shapes: (batch, length) pairs.
        limits: what is allowed.
        reference_name: what errors call the reference.
        without_padding: more candidates, compared where no row is padded.
        advice: what errors end with.
        states_after: layers whose graphs of states are compared, too.

    Yields:
        One result per graph, the worst of all candidates.

    Raises:
        ParityError: a difference above the tolerance, or too many survivors that differ.
    """
    ending = f"; {advice}" if advice else ""
    segments = reduction.segments(encoder.num_layers)
    names = [segment_name(segment.index) for segment in segments] if len(segments) > 1 else []
    task = task_of(encoder)
    dropped = [dropped_name(index) for index in range(len(names) - 1) if task.hears_dropped]
    cuts = {segment_name(segment.index): segment.cut for segment in segments}
    feeding = {name: names[:index] for index, name in enumerate(names)}  # the graphs before one
    feeding |= {name: names[: index + 1] for index, name in enumerate(dropped)}
    asked = [HEAD] if asked_token(task.outputs) is not None else []
    feeding |= {name: names or [DENSE] for name in asked}
    of_tokens = {HIDDEN_OUT, KEEP_LOGIT}
    of_tokens |= {output.name for output in task.outputs if output.per == "token"}
    of_tokens |= {EXIT_LOGITS} if task.answers_every_token else set()
    alone = (*dropped, *asked)  # graphs of tokens, each for itself
    for name in [*names, DENSE, *alone, *map(states_name, states_after)]:
        cut = cuts.get(name)
        worst: dict[str, float] = {}
        differing = total = 0
        for (batch, length), padded in product(shapes, (True, False)):
            columns = columns_of(rows_of(length, batch))
            mask = _padding(columns) if padded else np.ones((batch, length), np.bool_)
            columns[INPUT_IDS] = np.where(mask, columns[INPUT_IDS], 0)
            if padded:
                columns[ATTENTION_MASK] = mask
            # A later segment is fed the states that the layers before it made of real text.
            for earlier in feeding.get(name, ()):
                before = reference.graph(earlier)
                columns[HIDDEN] = _outputs(reference, earlier, _inputs(before, columns))[HIDDEN_OUT]
            if name in alone:
                columns.pop(ATTENTION_MASK, None)
            if name in asked:  # no more than a text asks for: what each says may be long
                columns[HIDDEN], mask = columns[HIDDEN][:, :_MOST_ASKED], mask[:, :_MOST_ASKED]
            inputs = _inputs(reference.graph(name), columns)
            expected = _outputs(reference, name, inputs)
            for side in (candidate, *(() if padded else without_padding)):
                received = _outputs(side, name, inputs)
                masked = {*expected} if name in alone else of_tokens
                found = largest_differences(expected, received, mask, masked)
                for output, difference in found.items():
                    tolerance = limits.tolerance_of(output)
                    if not difference <= tolerance:  # so that NaN fails, too
                        raise ParityError(
                            f"graph {name}, batch {batch}, length {length}: {output} differs from "
                            f"{reference_name} by {difference:.2g}, more than the tolerance "
                            f"{tolerance:g}{ending}"
                        )
                    worst[output] = max(worst.get(output, 0.0), difference)
                if cut is not None:
                    lengths = mask.sum(axis=1)
                    protected = np.stack([first_token(length)] * batch)
                    ours, theirs = (
                        select(outputs[KEEP_LOGIT], lengths, cut.rule, protected)
                        for outputs in (expected, received)
                    )
                    differing += int((ours != theirs).sum())
                    total += int(mask.sum())
        agreement = 1.0 - differing / total if total else 1.0
        if agreement < limits.survivor_agreement:
            raise ParityError(
                f"graph {name}: only {agreement:.2%} of the tokens have the same fate as in "
                f"{reference_name}, expected at least {limits.survivor_agreement:.0%}{ending}"
            )
        yield GraphParity(name, tuple(shapes), worst, agreement, limits.tolerance)


def compare_chains(
    task: Task,
    reference: Chain,
    candidate: Chain,
    rows: Sequence[TokenRow],
    limits: Limits = LIMITS["fp32"],
    *,
    name: str = "chain",
    reference_name: str = "PyTorch",
    advice: str = "",
) -> ChainParity:
    """Run the whole chain, and the dense model, on both sides over the same rows.

    A token on the boundary may be kept by one side alone, and its row then goes another way. No
    row is left out for that: up to the cut where the sides part their keep logits must agree, the
    candidate must keep what the reference's rule says of its own, and the share of such rows, of
    their tokens and of the answers that change is limited.

    Args:
        name, reference_name: what errors call the two.
        advice: what errors end with.

    Raises:
        ParityError: they differ by more than ``limits``.
    """
    (expected, wanted), (received, given) = (_scored(side, rows) for side in (reference, candidate))
    ending = f"; {advice}" if advice else ""
    logit_differences = [0.0]
    for index, row in enumerate(rows):
        for cut, rule, positions in _shared_cuts(reference, row, expected[index], received[index]):
            logits = given[index, cut]
            logit_differences.append(relative_difference(wanted[index, cut], logits))
            survivors = select(logits[None], None, rule, row.protected[None, positions])[0]
            if not np.array_equal(positions[survivors], received[index].kept[cut]):
                raise ParityError(
                    f"{name}: the survivors of row {index} at cut {cut} are not those that the "
                    f"rule picks by its own keep logits{ending}"
                )
    keep_logit_difference = _largest(logit_differences)
    dense_output_difference = _largest(
        map(output_difference, *(side.run_dense(rows) for side in (reference, candidate)))
    )
    for what, difference, most in (
        ("keep logits differ", keep_logit_difference, limits.logit_tolerance),
        ("outputs with no token removed differ", dense_output_difference, limits.tolerance),
    ):
        _require_at_most(difference, most, f"{name}: {what}", reference_name, ending)
    results = compare_results(task, rows, expected, received, limits, name, reference_name, advice)
    return ChainParity(
        **vars(results),
        keep_logit_difference=keep_logit_difference,
        dense_output_difference=dense_output_difference,
    )


def compare_results(
    task: Task,
    rows: Sequence[TokenRow],
    expected: Sequence[RowResult],
    received: Sequence[RowResult],
    limits: Limits = LIMITS["fp32"],
    name: str = "chain",
    reference_name: str = "PyTorch",
    advice: str = "",
) -> ResultParity:
    """Compare what two chains say of the same rows.

    Args:
        name, reference_name, advice: as ``compare_chains`` takes them.

    Raises:
        ParityError: they differ by more than ``limits``.
    """
    ending = f"; {advice}" if advice else ""
    together = [
        place
        for place, (one, other) in enumerate(zip(expected, received, strict=True))
        if not fates_apart(one, other)
    ]
    answers = ([result.outputs for result in side] for side in (expected, received))
    parity = ResultParity(
        rows=len(rows),
        rows_apart=len(rows) - len(together),
        max_output_difference=_largest(
            output_difference(expected[place], received[place]) for place in together
        ),
        survivor_agreement=survivor_agreement(rows, expected, received),
        answer_agreement=mean_agreement(task, *answers),
        tolerance=limits.tolerance,
    )
    difference = parity.max_output_difference
    _require_at_most(
        difference, limits.tolerance, f"{name}: outputs differ", reference_name, ending
    )
    if parity.rows_apart > limits.rows_apart * len(rows):
        raise ParityError(
            f"{name}: {parity.rows_apart} of {len(rows)} rows have other survivors than in "
            f"{reference_name}, expected at most {limits.rows_apart:.0%}{ending}"
        )
    for what, share, least in (
        ("the tokens have the same fate as", parity.survivor_agreement, limits.survivor_agreement),
        ("the answers are the same as", parity.answer_agreement, limits.answer_agreement),
    ):
        if share < least:
            raise ParityError(
                f"{name}: only {share:.2%} of {what} in {reference_name}, expected at least "
                f"{least:.0%}{ending}"
            )
    return parity


def _require_at_most(
    difference: float, most: float, what: str, reference_name: str, ending: str
) -> None:
    if not difference <= most:  # so that NaN fails, too
        raise ParityError(
            f"{what} from {reference_name} by {difference:.2g}, more than the tolerance "
            f"{most:g}{ending}"
        )


class _Recorder:
    """A chain's scorer, whose keep logits are kept: (row, cut) -> [S]."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.logits: dict[tuple[int, int], NDArray[np.float32]] = {}

    def keep_logits(
        self, cut: int, batch: Sequence[TokenState], outputs: Tensors
    ) -> NDArray[np.float32]:
        logits = self._scorer.keep_logits(cut, batch, outputs)
        for row, values in zip(batch, logits, strict=True):
            self.logits[row.index, cut] = values[: len(row)].copy()
        return logits


def _scored(
    chain: Chain, rows: Sequence[TokenRow]
) -> tuple[list[RowResult], dict[tuple[int, int], NDArray[np.float32]]]:
    """What a chain says of rows, and the keep logits that it went by."""
    recorder = _Recorder(chain.scorer)
    return chain.scored_by(recorder).run(rows), recorder.logits


def _shared_cuts(
    reference: Chain, row: TokenRow, expected: RowResult, received: RowResult
) -> Iterator[tuple[int, SelectionRule, NDArray[np.int64]]]:
    """The cuts that the same tokens of a row reach on both sides: index, rule, their positions."""
    positions = np.arange(len(row))
    for index, (ours, theirs) in enumerate(zip(expected.kept, received.kept, strict=True)):
        if index in (expected.exit, received.exit):
            return
        cut = reference.segments[index].cut
        assert cut is not None
        yield index, cut.rule, positions
        if not np.array_equal(ours, theirs):
            return
        positions = ours


def _largest(differences: Iterable[float]) -> float:
    return float(np.max(list(differences), initial=0.0))  # NaN where any is


def relative_difference(expected: NDArray[Any], received: NDArray[Any]) -> float:
    """Largest absolute difference, relative to the largest expected value where that is above 1."""
    scale = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(expected.astype(np.float64) - received).max()) / scale


def output_difference(expected: RowResult, received: RowResult) -> float:
    """Largest relative difference of a row's outputs."""
    return _largest(
        relative_difference(values, received.outputs[name])
        for name, values in expected.outputs.items()
    )


def largest_differences(
    expected: Tensors, received: Tensors, mask: NDArray[np.bool_], of_tokens: Set[str]
) -> dict[str, float]:
    """Largest relative difference per output, over real tokens where they are of tokens."""
    differences = {}
    for name, value in expected.items():
        pair = (value, received[name])
        if name in of_tokens:
            pair = (value[mask], received[name][mask])
        differences[name] = relative_difference(*pair)
    return differences


def columns_of(rows: Sequence[TokenRow]) -> dict[str, np.ndarray]:
    """Rows of one length as graphs may ask for them: [B, S, ...] each."""
    states = [TokenState.of(place, row) for place, row in enumerate(rows)]
    return {
        name: np.stack([state.column(name) for state in states])
        for name in (INPUT_IDS, TOKEN_TYPE_IDS, POSITIONS, MATCHES, PROTECTED)
    }


def _inputs(graph: Graph, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of the columns those that a graph takes, with the mask where there is one."""
    wanted = (*graph.inputs, ATTENTION_MASK)
    return {name: columns[name] for name in wanted if name in columns}


def _outputs(backend: Backend, name: str, inputs: Tensors) -> Tensors:
    """What a graph says, all of it on the host."""
    outputs = dict(backend.graph(name)(inputs))
    if HIDDEN_OUT in outputs:
        outputs[HIDDEN_OUT] = backend.arrays.to_host(outputs[HIDDEN_OUT])
    return outputs


def _padding(columns: Mapping[str, np.ndarray]) -> NDArray[np.bool_]:
    """A mask [B, S] by which all rows but the first lose tokens to padding."""
    batch, length = columns[INPUT_IDS].shape
    lengths = np.array([max(1, length // (place + 1)) for place in range(batch)])
    return np.arange(length) < lengths[:, None]
