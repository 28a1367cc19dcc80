"""The selection rule: turns keep logits into the survivors of a row.

Pure functions over arrays that run unchanged on numpy arrays and torch tensors
(neither is a dependency of the other here: the array's own library is used), so
that training, the PyTorch reference and the numpy runtime cannot disagree.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any, Literal

import numpy as np

from trbert_deploy.errors import ConfigError

_LARGEST = float(np.finfo(np.float32).max)
_SECOND_LEAST = float(np.nextafter(np.float32(-_LARGEST), np.float32(0.0)))
RULE_KINDS = ("threshold", "ratio", "budget")


@dataclass(frozen=True)
class SelectionRule:
    """How many tokens a row keeps at a cut, and so which ones.

    A row keeps its best tokens by keep logit; the rule says how many:

    - ``threshold``: those whose keep probability is at least ``value`` (TR-BERT, 0.5);
    - ``ratio``: ``ceil(value * length)``;
    - ``budget``: at most ``value`` tokens.

    Protected tokens come first and always survive. ``round_to`` rounds the number of
    survivors up to a multiple, filled with the row's own next-best tokens (never more
    than the row has).

    Raises:
        ConfigError: unknown kind, or a value outside the kind's range.
    """

    kind: str = "threshold"
    value: float = 0.5
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.kind not in RULE_KINDS:
            raise ConfigError(
                f"unknown selection rule {self.kind!r}: expected one of {', '.join(RULE_KINDS)}"
            )
        if self.kind == "threshold" and not 0.0 <= self.value <= 1.0:
            raise ConfigError(f"threshold is {self.value}: expected a probability from 0 to 1")
        if self.kind == "ratio" and not 0.0 < self.value <= 1.0:
            raise ConfigError(f"ratio is {self.value}: expected a share above 0, at most 1")
        if self.kind == "budget" and (self.value < 1 or self.value % 1 != 0):
            raise ConfigError(
                f"budget is {self.value}: expected a whole number of tokens, 1 or more"
            )
        if self.round_to < 1 or self.round_to % 1 != 0:
            raise ConfigError(f"round_to is {self.round_to}: expected a whole number, 1 or more")
        if self.kind == "budget" and self.value % self.round_to:
            raise ConfigError(
                f"budget is {self.value}: expected a multiple of round_to, {self.round_to}, "
                "since rounding up would exceed it"
            )

    def with_value(self, value: float) -> SelectionRule:
        """The same rule at another operating point."""
        return replace(self, value=value)


@dataclass(frozen=True)
class OperatingPoint:
    """Another operating point than a model's own; what is None stays as the model has it.

    Attributes:
        threshold: keep probability from which a token survives.
        ratio: instead, share of its tokens that a row keeps at each cut.
        max_tokens: instead, most tokens that a row keeps at each cut.
        round_to: multiple that the number of survivors is rounded up to.
        latency_budget_ms: instead, milliseconds that a row of the longest length may take; a
            pipeline finds the threshold (``runtime.budget``), rules alone cannot.
        dense_below: rows of fewer tokens keep all of them, in the dense graph; ``auto`` where a
            pipeline is to find from which length on the chain pays (``runtime.break_even``).

    Raises:
        ConfigError: more than one of the first three is given, or one is out of range.
    """

    threshold: float | None = None
    ratio: float | None = None
    max_tokens: int | None = None
    round_to: int | None = None
    latency_budget_ms: float | None = None
    dense_below: int | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        below = self.dense_below
        if below not in (None, "auto") and not (isinstance(below, int) and below >= 0):
            raise ConfigError(f"dense_below is {below}: expected 0 or more tokens, or auto")
        if self.latency_budget_ms is not None and self._rules():
            raise ConfigError(
                "a latency budget decides the threshold: give no threshold, ratio or max_tokens "
                "with it"
            )
        if len(self._rules()) > 1:
            raise ConfigError(
                "threshold, ratio and max_tokens exclude each other: give one of them"
            )
        self.turn(SelectionRule())

    def turn(self, rule: SelectionRule) -> SelectionRule:
        """A rule of the model at this operating point.

        Raises:
            ConfigError: ``max_tokens`` is no multiple of what the rule rounds to.
        """
        round_to = rule.round_to if self.round_to is None else self.round_to
        for kind, value in self._rules().items():
            return SelectionRule(kind, value, round_to)
        return replace(rule, round_to=round_to)

    def _rules(self) -> dict[str, float]:
        asked = {"threshold": self.threshold, "ratio": self.ratio, "budget": self.max_tokens}
        return {kind: value for kind, value in asked.items() if value is not None}


def select(keep_logit: Any, lengths: Any, rule: SelectionRule, protected: Any = None) -> Any:
    """The survivors of every row (design contract: selection).

    A row's result depends on nothing but its own first ``lengths[b]`` logits: not on
    other rows, padding or the array library. Ties go to the earlier token.

    Args:
        keep_logit: [B, S] float32; what stands behind a row's length is ignored.
        lengths: [B] integer, tokens per row, each from 1 to S; or None where each has S.
        rule: the rule of this cut.
        protected: [B, S] bool, tokens that must survive, or None for the first token
            of every row alone (the first token is protected in any case).

    Returns:
        keep: [B, S] bool; False behind a row's length.
    """
    if lengths is None:
        if rule.kind == "threshold" and protected is None:
            return _select_unpadded(keep_logit, rule)
        lengths = [keep_logit.shape[1]] * len(keep_logit)
    xp = _array_library(keep_logit)
    lengths = xp.asarray(lengths, dtype=xp.int64)
    valid, protected = _valid_and_protected(keep_logit, lengths, protected)
    if rule.kind == "threshold":
        passing = protected | (valid & (keep_logit >= _logit(rule.value)))
        if rule.round_to == 1:
            return passing  # the best tokens are these: nothing to rank
        wanted = passing.sum(axis=1)
    elif rule.kind == "ratio":
        # The small term keeps 0.07 * 100 from becoming 8 through rounding.
        wanted = xp.ceil(rule.value * xp.asarray(lengths, dtype=xp.float64) - 1e-9)
    else:
        wanted = xp.full_like(lengths, int(rule.value))
    wanted = xp.maximum(xp.asarray(wanted, dtype=xp.int64), protected.sum(axis=1))
    wanted = (wanted + rule.round_to - 1) // rule.round_to * rule.round_to
    return keep_best(keep_logit, lengths, wanted, protected)


def _select_unpadded(keep_logit: Any, rule: SelectionRule) -> Any:
    """What ``select`` says of whole rows by a threshold, in few operations.

    Between two graphs every one of them finds cold caches, and takes ten times as long as in a
    benchmark of its own.
    """
    keep = keep_logit >= _logit(rule.value)
    keep[:, 0] = True
    if rule.round_to > 1:
        xp = _array_library(keep_logit)
        length = keep_logit.shape[1]
        for logits, row in zip(keep_logit, keep, strict=True):
            passing = int(row.sum())
            missing = min(-passing % rule.round_to, length - passing)
            if missing:
                order = xp.argsort(-logits[1:], stable=True)  # what is no number comes last
                best = order[: passing + missing - 1]
                row[1 + best] = True
    return keep


def keep_best(score: Any, lengths: Any, wanted: Any, protected: Any = None) -> Any:
    """The ``wanted`` best tokens of every row, protected ones first, ties to the earlier token.

    Args:
        score: [B, S] float32; what stands behind a row's length is ignored.
        lengths: [B] int64, tokens per row.
        wanted: [B] int64; at least the protected tokens and at most the whole row survive.
        protected: as ``select`` takes it.

    Returns:
        keep: [B, S] bool; False behind a row's length.
    """
    xp = _array_library(score)
    valid, protected = _valid_and_protected(score, lengths, protected)
    # Finite, so that no score (NaN comes last) ranks with protected tokens or with padding.
    score = xp.nan_to_num(score, nan=-_LARGEST, posinf=_LARGEST, neginf=_SECOND_LEAST)
    priority = xp.where(protected, math.inf, xp.where(valid, score, -math.inf))
    rank = xp.argsort(xp.argsort(-priority, stable=True), stable=True)
    wanted = xp.minimum(xp.maximum(wanted, protected.sum(axis=1)), lengths)
    return rank < wanted[:, None]


def _valid_and_protected(score: Any, lengths: Any, protected: Any) -> tuple[Any, Any]:
    """Which places hold a token, and which tokens must survive: [B, S] bool each."""
    xp = _array_library(score)
    position = xp.arange(score.shape[1], device=score.device)[None, :]
    valid = position < lengths[:, None]
    first = (position == 0) & valid
    return valid, first if protected is None else (protected | first) & valid


@cache
def _logit(probability: float) -> float:
    """The float32 logit at which the sigmoid reaches ``probability``."""
    if probability <= 0.0:
        return -math.inf
    if probability >= 1.0:
        return math.inf
    return float(np.float32(math.log(probability) - math.log1p(-probability)))


def _array_library(array: Any) -> ModuleType:
    """numpy or torch, whichever made ``array``."""
    return sys.modules[type(array).__module__.partition(".")[0]]
