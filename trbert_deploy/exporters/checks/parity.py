"""Compares exported graphs, and the chain made of them, with PyTorch.

Differences are the largest, never the mean, relative to the reference's own largest value
where that is above 1. Survivors are a function of the keep logits alone, so where these agree
within the tolerance only tokens that close to the boundary can meet another fate; their share
is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.bundle.manifest import (
    ATTENTION_MASK,
    DENSE,
    HIDDEN,
    HIDDEN_OUT,
    INPUT_IDS,
    KEEP_LOGIT,
    POSITIONS,
    TOKEN_TYPE_IDS,
    segment_name,
)
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.errors import ParityError
from trbert_deploy.runtime.backends.backend import Backend, Graph, Tensors
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.token_state import (
    RowResult,
    TokenRow,
    TokenState,
    fates_apart,
    survivor_agreement,
)
from trbert_deploy.runtime.tokenizing import TextTokenizer
from trbert_deploy.selection.select import first_token, select
from trbert_deploy.tasks.task import Task, mean_agreement

#: (length, count) -> that many rows of exactly that length.
RowMaker = Callable[[int, int], Sequence[TokenRow]]

#: Largest difference allowed in float32.
FP32_TOLERANCE = 2e-4
LONGEST_CHECKED = 2048


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


@dataclass(frozen=True)
class ChainParity:
    """How far the whole chain is from PyTorch's.

    Attributes:
        rows: rows that were compared, at several lengths.
        max_output_difference: largest relative difference, over rows with the same survivors.
        survivor_agreement: share of tokens with the same fate at every cut.
        answer_agreement: how far the answers are the same, as the task says.
        tolerance: largest difference allowed.
    """

    rows: int
    max_output_difference: float
    survivor_agreement: float
    answer_agreement: float
    tolerance: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def row_maker(
    tokenizer_path: Path, max_length: int, vocab_size: int, texts: Sequence[str]
) -> RowMaker:
    """Makes rows of sample texts, or of random tokens where there are none."""
    if texts:
        tokenizer = TextTokenizer(tokenizer_path, max_length)
        return lambda length, count: tokenizer.rows_of_length(texts, length, count)
    rng = np.random.default_rng(0)

    def random_rows(length: int, count: int) -> list[TokenRow]:
        ids = rng.integers(0, vocab_size, (count, length))
        return [TokenRow(row, np.zeros_like(row)) for row in ids]

    return random_rows


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
    tolerance: float = FP32_TOLERANCE,
    reference_name: str = "PyTorch",
    without_padding: Sequence[Backend] = (),
) -> Iterator[GraphParity]:
    """Run every graph on both backends, over batches with padding and without, and compare.

    Args:
        reference, candidate: backends that open the same graphs.
        rows_of: (length, count) -> that many rows of exactly that length.
        shapes: (batch, length) pairs.
        tolerance: largest relative difference allowed.
        reference_name: what errors call the reference.
        without_padding: more candidates, compared where no row is padded.

    Yields:
        One result per graph, the worst of all candidates.

    Raises:
        ParityError: a difference above the tolerance.
    """
    segments = reduction.segments(encoder.num_layers)
    names = [segment_name(segment.index) for segment in segments] if len(segments) > 1 else []
    for index, name in enumerate([*names, DENSE]):
        cut = None if name == DENSE else segments[index].cut
        worst: dict[str, float] = {}
        differing = total = 0
        for (batch, length), padded in product(shapes, (True, False)):
            columns = columns_of(rows_of(length, batch))
            mask = _padding(columns) if padded else np.ones((batch, length), np.bool_)
            columns[INPUT_IDS] = np.where(mask, columns[INPUT_IDS], 0)
            if padded:
                columns[ATTENTION_MASK] = mask
            # A later segment is fed the states that the layers before it made of real text.
            for earlier in names[:index] if name != DENSE else []:
                before = reference.graph(earlier)
                columns[HIDDEN] = before(_inputs(before, columns))[HIDDEN_OUT]
            inputs = _inputs(reference.graph(name), columns)
            expected = reference.graph(name)(inputs)
            for side in (candidate, *(() if padded else without_padding)):
                received = side.graph(name)(inputs)
                for output, difference in _differences(expected, received, mask).items():
                    if not difference <= tolerance:  # so that NaN fails, too
                        raise ParityError(
                            f"graph {name}, batch {batch}, length {length}: {output} differs from "
                            f"{reference_name} by {difference:.2g}, more than the tolerance "
                            f"{tolerance:g}"
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
        yield GraphParity(name, tuple(shapes), worst, agreement, tolerance)


def compare_chains(
    task: Task,
    reference: Chain,
    candidate: Chain,
    rows: Sequence[TokenRow],
    tolerance: float = FP32_TOLERANCE,
    least_agreement: float = 0.99,
) -> ChainParity:
    """Run the whole chain on both sides over the same rows.

    A token on the boundary may be kept by one side alone, and its row then goes another way:
    outputs are compared on rows with the same survivors, and the share of tokens with the same
    fate must reach ``least_agreement``.

    Raises:
        ParityError: logits differ by more than the tolerance, or too few survivors agree.
    """
    expected, received = reference.run(rows), candidate.run(rows)
    differences = [
        output_difference(one, other)
        for one, other in zip(expected, received, strict=True)
        if not fates_apart(one, other)
    ]
    worst = float(np.max(differences, initial=0.0))  # NaN where any is
    answers = ([result.outputs for result in side] for side in (expected, received))
    parity = ChainParity(
        rows=len(rows),
        max_output_difference=worst,
        survivor_agreement=survivor_agreement(rows, expected, received),
        answer_agreement=mean_agreement(task, *answers),
        tolerance=tolerance,
    )
    if not worst <= tolerance:
        raise ParityError(
            f"chain: outputs differ from PyTorch by {worst:.2g}, more than the tolerance "
            f"{tolerance:g}"
        )
    if parity.survivor_agreement < least_agreement:
        raise ParityError(
            f"chain: only {parity.survivor_agreement:.2%} of the tokens have the same fate as in "
            f"PyTorch, expected at least {least_agreement:.0%}"
        )
    return parity


def relative_difference(expected: NDArray[Any], received: NDArray[Any]) -> float:
    """Largest absolute difference, relative to the largest expected value where that is above 1."""
    scale = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(expected.astype(np.float64) - received).max()) / scale


def output_difference(expected: RowResult, received: RowResult) -> float:
    """Largest relative difference of a row's outputs."""
    differences = (
        relative_difference(values, received.outputs[name])
        for name, values in expected.outputs.items()
    )
    return float(np.max(list(differences)))  # NaN where any is


def columns_of(rows: Sequence[TokenRow]) -> dict[str, np.ndarray]:
    """Rows of one length as graphs may ask for them: [B, S] each."""
    states = [TokenState.of(place, row) for place, row in enumerate(rows)]
    return {
        name: np.stack([state.column(name) for state in states])
        for name in (INPUT_IDS, TOKEN_TYPE_IDS, POSITIONS)
    }


def _inputs(graph: Graph, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of the columns those that a graph takes, with the mask where there is one."""
    wanted = (*graph.inputs, ATTENTION_MASK)
    return {name: columns[name] for name in wanted if name in columns}


def _padding(columns: Mapping[str, np.ndarray]) -> NDArray[np.bool_]:
    """A mask [B, S] by which all rows but the first lose tokens to padding."""
    batch, length = columns[INPUT_IDS].shape
    lengths = np.array([max(1, length // (place + 1)) for place in range(batch)])
    return np.arange(length) < lengths[:, None]


def _differences(expected: Tensors, received: Tensors, mask: NDArray[np.bool_]) -> dict[str, float]:
    """Largest relative difference per output, over real tokens."""
    differences = {}
    for name, value in expected.items():
        pair = (value, received[name])
        if value.shape[:2] == mask.shape:  # one value (or state) per token
            pair = (value[mask], received[name][mask])
        differences[name] = relative_difference(*pair)
    return differences
