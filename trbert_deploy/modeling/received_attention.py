"""Tokens by the attention that they receive, the score of LTP (Kim et al. 2022, equation 2).

Nothing here is trained: it is what a learned policy is compared with.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.layouts.layout import ScoreBias, heads_of
from trbert_deploy.modeling.layouts.padded import PaddedLayout
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


class RecordingLayout(PaddedLayout):
    """Whole rows of one length that note how much attention each token receives.

    Attributes:
        received: [B, S] float32, of the last attention that ran: mean over heads and queries; a
            row's values sum to 1.
    """

    received: Tensor

    def __init__(self, positions: Tensor | None = None) -> None:
        super().__init__(None, positions)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_heads: int,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        mask = self.scores_mask(query, bias)
        q, k, v = (heads_of(states, num_heads) for states in (query, key, value))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # [B, N, S, S]
        if mask is not None:
            blocked = mask.dtype == torch.bool
            scores = scores.masked_fill(~mask, -torch.inf) if blocked else scores + mask
        weights = scores.softmax(-1)
        self.received = weights.mean((1, 2))
        return (weights @ v).transpose(1, 2).flatten(2)


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
    attending_layers(reduction)
    layout = RecordingLayout()
    ids, types = torch.from_numpy(row.input_ids)[None], torch.from_numpy(row.token_type_ids)[None]
    protected = torch.from_numpy(row.protected)[None]
    hidden = model.embed(ids, types, layout)
    start = 0
    kept = []
    for cut in reduction.cuts:
        hidden = model.encoder.run_steps(hidden, layout, start, cut.step)
        lengths = torch.tensor([hidden.shape[1]])
        keep = select(layout.received, lengths, cut.rule, protected)
        positions = layout.positions_of(hidden)[:, keep[0]]
        hidden, protected = hidden[:, keep[0]], protected[:, keep[0]]
        layout = RecordingLayout(positions)
        kept.append(keep[0].numpy())
        start = cut.step
    return kept
