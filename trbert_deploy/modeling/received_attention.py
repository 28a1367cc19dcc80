"""Tokens by the attention that they receive, the score of LTP (Kim et al. 2022, equation 2).

Nothing here is trained: it is what a learned policy is compared with.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.blocks.attention import Attention
from trbert_deploy.modeling.blocks.encoder import EncoderLayer
from trbert_deploy.modeling.layouts import PaddedLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.selection.select import select


def attending_layers(reduction: ReductionConfig) -> list[int]:
    """For each cut the layer whose attention runs last before it.

    Raises:
        ConfigError: no attention runs before a cut, or none since the cut before it.
    """
    layers = [(cut.step - 1) // 2 for cut in reduction.cuts]
    if -1 in layers or len(set(layers)) < len(layers):
        raise ConfigError(
            "attention-received selection needs an attention before every cut: expected cuts "
            "from 0.5 on, a layer or more from each other"
        )
    return layers


def attention_of(model: ReducedModel, layer: int) -> Attention:
    """The attention of a layer."""
    return cast(EncoderLayer, model.encoder.layers[layer]).attention


def mean_attention(query: Tensor, key: Tensor) -> Tensor:
    """Attention probability that each token of a row gets, mean over heads and queries.

    Args:
        query, key: [S, N, D] float32.

    Returns:
        [S] float32; they sum to 1.
    """
    weights = torch.einsum("qnd,knd->nqk", query, key) * query.shape[-1] ** -0.5
    return weights.softmax(-1).mean((0, 1))


@torch.inference_mode()
def select_by_attention(
    model: ReducedModel, row: TokenRow, reduction: ReductionConfig
) -> list[NDArray[np.bool_]]:
    """What the chain keeps of a row if received attention decides instead of the policies.

    Args:
        model: in evaluation mode, on the CPU; its own rules are not looked at.
        reduction: the model's cuts with the rules in force.

    Returns:
        For each cut which of the tokens that reach it survive, [S] each.

    Raises:
        ConfigError: as ``attending_layers``.
    """
    layout = PaddedLayout(None)
    ids, types = torch.from_numpy(row.input_ids)[None], torch.from_numpy(row.token_type_ids)[None]
    hidden = model.embed(ids, types, torch.arange(len(row)))
    start = 0
    kept = []
    for cut, layer in zip(reduction.cuts, attending_layers(reduction), strict=True):
        hidden = model.encoder.run_steps(hidden, layout, start, 2 * layer)
        attention = attention_of(model, layer)
        query, key = (
            linear(hidden[0]).unflatten(-1, (attention.num_heads, -1))
            for linear in (attention.query, attention.key)
        )
        scores = mean_attention(query, key)
        hidden = model.encoder.run_steps(hidden, layout, 2 * layer, cut.step)
        keep = select(scores[None], torch.tensor([hidden.shape[1]]), cut.rule)
        hidden = hidden[:, keep[0]]
        kept.append(keep[0].numpy())
        start = cut.step
    return kept
