"""Counts the floating-point operations of an encoder (a multiplication and an addition are two).

The count is the one of TR-BERT's paper: one layer over n tokens costs 8 n H^2 + 4 n^2 H for
attention and 4 n H F for the feed-forward (6 n H F where it is gated), a policy 2 n (32 H + 32).
Relative positions that meet every query and key (DeBERTa) cost 2 n R H for R of them. A head that
answers tokens costs 2 n H C, and the map of those that are dropped 2 n H^2 (where the map is of
their mean alone it is left out, once for a row). An exit costs what the head does on the tokens
that it sees; a row that leaves has no tokens in the segments behind. Embeddings, LayerNorm and
activations are left out, on both sides of every comparison. Lengths are numbers, or arrays or
tensors of one number per row; what comes back is of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trbert_deploy.config import EncoderSpec, ReductionConfig

POLICY_WIDTH = 32
#: Few rows allow coarse steps only: from this share on a wanted speed-up counts as reached.
REACHED = 0.95


def dense_flops(encoder: EncoderSpec, length: Any) -> Any:
    """Operations of the dense model on one row of ``length`` tokens."""
    return _steps(encoder, 0, encoder.num_steps, length) + _head(encoder, length)


def reduced_flops(encoder: EncoderSpec, reduction: ReductionConfig, lengths: Sequence[Any]) -> Any:
    """Operations of the chain on one row.

    Args:
        lengths: tokens of the row in each segment: all, then the survivors of every cut; 0 behind
            the one at which it left.
    """
    total = _head(encoder, lengths[0])
    if encoder.answers_tokens:
        answered = lengths[-1]  # by the head, or by the exit at which the row left
        for earlier in reversed(lengths[:-1]):
            answered = answered + (answered == 0) * earlier
        total += 2 * (lengths[0] - answered) * encoder.hidden_size**2
    for segment, length in zip(reduction.segments(encoder.num_layers), lengths, strict=True):
        total += _steps(encoder, segment.start, segment.stop, length)
        if segment.cut is not None:
            total += 2 * length * (POLICY_WIDTH * encoder.hidden_size + POLICY_WIDTH)
            if reduction.exits is not None:
                total += (length > 0) * _head(encoder, length)
    return total


def speedup(
    encoder: EncoderSpec, reduction: ReductionConfig, rows: Sequence[Sequence[int]]
) -> float:
    """FLOPs of the dense model over those of the chain, summed over rows.

    Args:
        rows: for each row its tokens in each segment, as ``reduced_flops`` takes them.
    """
    dense = sum(dense_flops(encoder, lengths[0]) for lengths in rows)
    return dense / sum(reduced_flops(encoder, reduction, lengths) for lengths in rows)


def _steps(encoder: EncoderSpec, start: int, stop: int, length: Any) -> Any:
    width = encoder.hidden_size
    attention = 8 * length * width**2 + 4 * length**2 * width
    attention += 2 * length * encoder.relative_keys * width
    matrices = 3 if encoder.gated_ffn else 2
    feed_forward = 2 * matrices * length * width * encoder.ffn_size
    return sum(feed_forward if step % 2 else attention for step in range(start, stop))


def _head(encoder: EncoderSpec, length: Any) -> Any:
    width = encoder.hidden_size
    if encoder.answers_tokens:
        return 2 * length * width * encoder.num_logits
    return 2 * width**2 + 2 * width * encoder.num_logits
