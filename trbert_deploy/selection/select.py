"""Selection: turns keep logits into the survivors of a row.

Pure functions over arrays that run unchanged on numpy arrays and torch tensors
(neither is a dependency of the other here: the array's own library is used), so
that training, the PyTorch reference and the numpy runtime cannot disagree.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.selection.rules import SelectionRule

_LARGEST = float(np.finfo(np.float32).max)
_SECOND_LEAST = float(np.nextafter(np.float32(-_LARGEST), np.float32(0.0)))


def first_token(length: int) -> NDArray[np.bool_]:
    """The tokens of a row that every model needs: the first one, which its head may read. [S]."""
    protected = np.zeros(length, np.bool_)
    protected[:1] = True
    return protected


def select(keep_logit: Any, lengths: Any, rule: SelectionRule, protected: Any) -> Any:
    """The survivors of every row (design contract: selection).

    A row's result depends on nothing but its own first ``lengths[b]`` logits: not on
    other rows, padding or the array library. Ties go to the earlier token.

    Args:
        keep_logit: [B, S] float32; what stands behind a row's length is ignored.
        lengths: [B] integer, tokens per row, each from 1 to S; or None where each has S.
        rule: the rule of this cut.
        protected: [B, S] bool, tokens that must survive; at least one in every row.

    Returns:
        keep: [B, S] bool; False behind a row's length.
    """
    if lengths is None:
        if rule.kind == "threshold":
            return _select_unpadded(keep_logit, rule, protected)
        lengths = [keep_logit.shape[1]] * len(keep_logit)
    xp = _array_library(keep_logit)
    lengths = xp.asarray(lengths)
    valid = _valid(keep_logit, lengths)
    protected = protected & valid
    if rule.kind == "threshold":
        passing = protected | (valid & (keep_logit >= least_logit(rule.value)))
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


def _select_unpadded(keep_logit: Any, rule: SelectionRule, protected: Any) -> Any:
    """What ``select`` says of whole rows by a threshold, in few operations.

    Between two graphs every one of them finds cold caches, and takes ten times as long as in a
    benchmark of its own.
    """
    keep = (keep_logit >= least_logit(rule.value)) | protected
    if rule.round_to > 1:
        xp = _array_library(keep_logit)
        for logits, row, always in zip(keep_logit, keep, protected, strict=True):
            passing = int(row.sum())
            missing = -passing % rule.round_to
            if missing:
                (free,) = xp.where(~always)
                order = xp.argsort(-logits[free], stable=True)  # what is no number comes last
                row[free[order[: passing + missing - int(always.sum())]]] = True
    return keep


def keep_best(score: Any, lengths: Any, wanted: Any, protected: Any) -> Any:
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
    valid = _valid(score, lengths)
    protected = protected & valid
    # Finite, so that no score (NaN comes last) ranks with protected tokens or with padding.
    score = xp.nan_to_num(score, nan=-_LARGEST, neginf=_SECOND_LEAST)
    priority = xp.where(protected, math.inf, xp.where(valid, score, -math.inf))
    rank = xp.argsort(xp.argsort(-priority, stable=True))
    wanted = xp.minimum(xp.maximum(wanted, protected.sum(axis=1)), lengths)
    return rank < wanted[:, None]


def _valid(score: Any, lengths: Any) -> Any:
    """Which places hold a token: [B, S] bool."""
    xp = _array_library(score)
    return xp.arange(score.shape[1], device=score.device)[None, :] < lengths[:, None]


@cache
def least_logit(probability: float) -> float:
    """The float32 logit at which the sigmoid reaches ``probability``."""
    if probability <= 0.0:
        return -math.inf
    if probability >= 1.0:
        return math.inf
    return float(np.float32(math.log(probability) - math.log1p(-probability)))


def _array_library(array: Any) -> ModuleType:
    """numpy or torch, whichever made ``array``."""
    return sys.modules[type(array).__module__.partition(".")[0]]
