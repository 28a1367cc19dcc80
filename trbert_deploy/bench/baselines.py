"""What a sweep compares the chain with: simple ways to save as much, with the same weights.

    truncation   the dense model on a text's first tokens
    random       the chain, but chance chooses the tokens, one ratio for all texts and cuts
    attention    the same, by the attention that tokens receive (needs PyTorch)

The model was not trained for any of them. What survives is decided beforehand and replayed, so that
none is charged for choosing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.flops import REACHED, dense_flops, reduced_flops
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.scorers import ReplayedScorer, Survival
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.selection.rules import SelectionRule
from trbert_deploy.selection.select import select

BISECTIONS = 40


def first_tokens(count: int) -> Callable[[TokenRow], TokenRow]:
    """The first ``count`` tokens, the last of them the row's last one ([SEP])."""

    def view(row: TokenRow) -> TokenRow:
        return row.part([*range(count - 1), len(row) - 1]) if len(row) > count else row

    return view


def select_by_chance(
    row: TokenRow, reduction: ReductionConfig, generator: np.random.Generator
) -> Survival:
    """What the cuts' rules leave of a row whose tokens have random scores."""
    protected = row.protected
    kept = []
    for cut in reduction.cuts:
        length = len(protected)
        scores = generator.random((1, length), np.float32)
        kept.append(select(scores, np.array([length]), cut.rule, protected[None])[0])
        protected = protected[kept[-1]]
    return kept


def replay(pipeline: Pipeline, rows: Sequence[TokenRow], survivals: Sequence[Survival]) -> Pipeline:
    """The model with what survives of each of ``rows`` decided."""
    chain = pipeline.chain.at(OperatingPoint(threshold=0.5, round_to=1))
    chain = chain.scored_by(ReplayedScorer.of(rows, survivals))
    return Pipeline(pipeline.path, pipeline.encoder, pipeline.tokenizer, chain, pipeline.bundle)


# How much to keep for the wanted computation: a matter of lengths alone


def count_for(
    spec: EncoderSpec, lengths: NDArray[np.int64], speedup: float, round_to: int = 1
) -> int:
    """To how many tokens rows of ``lengths`` [N] are to be cut.

    Raises:
        ConfigError: so much cannot be saved.
    """

    def count(share: float) -> int:
        tokens = max(3, round(share * int(lengths.max())))  # [CLS], one token, [SEP]
        return -(-tokens // round_to) * round_to

    def reached(share: float) -> float:
        cut = np.minimum(lengths, count(share))
        return float(dense_flops(spec, lengths).sum() / dense_flops(spec, cut).sum())

    return count(_bisect(reached, speedup, "truncation"))


def with_ratio(
    spec: EncoderSpec, reduction: ReductionConfig, lengths: NDArray[np.int64], speedup: float
) -> ReductionConfig:
    """The same cuts, all with the one ratio at which rows of ``lengths`` [N] save so much.

    Raises:
        ConfigError: so much cannot be saved with these cuts.
    """

    def at(ratio: float) -> ReductionConfig:
        rules = (SelectionRule("ratio", ratio, cut.rule.round_to) for cut in reduction.cuts)
        return reduction.with_rules(tuple(rules))

    def reached(ratio: float) -> float:
        columns = [lengths]
        for cut in reduction.cuts:
            kept = np.ceil(ratio * columns[-1] - 1e-9)  # as ``select`` has it
            kept = np.ceil(np.maximum(1, kept) / cut.rule.round_to) * cut.rule.round_to
            columns.append(np.minimum(columns[-1], kept.astype(np.int64)))
        reduced = reduced_flops(spec, reduction, columns)
        return float(dense_flops(spec, lengths).sum() / reduced.sum())

    return at(_bisect(reached, speedup, "a ratio at these cuts"))


def _bisect(reached: Callable[[float], float], speedup: float, what: str) -> float:
    """The share, above 0 and up to 1, at which a falling function comes nearest to ``speedup``."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) >= speedup else (low, middle)
    low = low or high
    if reached(low) < speedup * REACHED:
        raise ConfigError(
            f"{what} saves {reached(low):.2f} times the FLOPs at most: expected {speedup:g}; "
            "ask for less, or cut earlier"
        )
    # Few rows allow coarse steps only, and the two stand on either side of one.
    return min((low, high), key=lambda share: abs(math.log(reached(share) / speedup)))
