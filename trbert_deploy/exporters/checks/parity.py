"""Compares exported graphs, and the chain made of them, with PyTorch.

Differences are the largest, never the mean, relative to the reference's own largest value
where that is above 1. Survivors are a function of the keep logits alone, so where these agree
within the tolerance only tokens that close to the boundary can meet another fate; their share
is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    TOKEN_TYPE_IDS,
    segment_name,
)
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.errors import ParityError
from trbert_deploy.runtime.backends.backend import Backend, Tensors, with_mask
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.token_state import TokenRow, fates_apart, survivor_agreement
from trbert_deploy.runtime.tokenizing import TextTokenizer
from trbert_deploy.selection.select import select

#: (length, count) -> that many rows of exactly that length.
RowMaker = Callable[[int, int], Sequence[TokenRow]]

#: Largest difference allowed in float32.
FP32_TOLERANCE = 2e-4


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
        max_logit_difference: largest relative difference, over rows with the same survivors.
        survivor_agreement: share of tokens with the same fate at every cut.
        label_agreement: share of rows with the same label.
        tolerance: largest difference allowed.
    """

    rows: int
    max_logit_difference: float
    survivor_agreement: float
    label_agreement: float
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
    """(batch, length) to compare: 1 and 3; 1, 2, the traced length +- 1 and the maximum."""
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
            inputs = _inputs(rows_of(length, batch), padded)
            mask = with_mask(inputs)[ATTENTION_MASK]
            # A later segment is fed the states that the layers before it made of real text.
            for earlier in names[:index] if name != DENSE else []:
                hidden = reference.graph(earlier)(inputs)[HIDDEN_OUT]
                inputs = {HIDDEN: hidden} | ({ATTENTION_MASK: mask} if padded else {})
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
                    ours, theirs = (
                        select(outputs[KEEP_LOGIT], lengths, cut.rule)
                        for outputs in (expected, received)
                    )
                    differing += int((ours != theirs).sum())
                    total += int(mask.sum())
        agreement = 1.0 - differing / total if total else 1.0
        yield GraphParity(name, tuple(shapes), worst, agreement, tolerance)


def compare_chains(
    reference: Chain,
    candidate: Chain,
    rows: Sequence[TokenRow],
    tolerance: float = FP32_TOLERANCE,
    least_agreement: float = 0.99,
) -> ChainParity:
    """Run the whole chain on both sides over the same rows.

    A token on the boundary may be kept by one side alone, and its row then goes another way:
    logits are compared on rows with the same survivors, and the share of tokens with the same
    fate must reach ``least_agreement``.

    Raises:
        ParityError: logits differ by more than the tolerance, or too few survivors agree.
    """
    worst = 0.0
    same_label = 0
    expected, received = reference.run(rows), candidate.run(rows)
    for one, other in zip(expected, received, strict=True):
        same_label += int(np.argmax(one.logits) == np.argmax(other.logits))
        if not fates_apart(one, other):
            worst = max(worst, relative_difference(one.logits, other.logits))
    parity = ChainParity(
        rows=len(rows),
        max_logit_difference=worst,
        survivor_agreement=survivor_agreement(rows, expected, received),
        label_agreement=same_label / len(rows),
        tolerance=tolerance,
    )
    if not worst <= tolerance:
        raise ParityError(
            f"chain: logits differ from PyTorch by {worst:.2g}, more than the tolerance "
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


def _inputs(rows: Sequence[TokenRow], padded: bool) -> dict[str, np.ndarray]:
    """The first segment's inputs [B, S]; padded, all rows but the first lose tokens to padding."""
    input_ids = np.stack([row.input_ids for row in rows])
    token_type_ids = np.stack([row.token_type_ids for row in rows])
    if not padded:
        return {INPUT_IDS: input_ids, TOKEN_TYPE_IDS: token_type_ids}
    length = input_ids.shape[1]
    lengths = np.array([max(1, length // (place + 1)) for place in range(len(rows))])
    mask = np.arange(length) < lengths[:, None]
    return {
        INPUT_IDS: np.where(mask, input_ids, 0),
        TOKEN_TYPE_IDS: token_type_ids,
        ATTENTION_MASK: mask,
    }


def _differences(expected: Tensors, received: Tensors, mask: NDArray[np.bool_]) -> dict[str, float]:
    """Largest relative difference per output, over real tokens."""
    differences = {}
    for name, value in expected.items():
        pair = (value, received[name])
        if value.shape[:2] == mask.shape:  # one value (or state) per token
            pair = (value[mask], received[name][mask])
        differences[name] = relative_difference(*pair)
    return differences
