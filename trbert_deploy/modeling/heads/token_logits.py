"""What all heads have that answer every token with some logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.blocks.activations import ACTIVATIONS
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.heads.tokens import TokensHead
from trbert_deploy.tasks.outputs import Output
from trbert_deploy.tasks.task import NO_TOKEN
from trbert_deploy.tasks.text_classification import LOGITS


class TokenLogitsHead(TokensHead):
    """A linear layer over the last state of each token.

    Families whose classifier of texts is a prediction head with a normalization (``norm`` in
    ``spec.head``) have the same dense layer, activation and normalization before it.
    """

    def __init__(self, spec: EncoderSpec, outputs: Sequence[Output]) -> None:
        super().__init__(outputs)
        width = spec.hidden_size
        self.dense: nn.Module = nn.Identity()
        self.activation: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        options: dict[str, Any] = dict(spec.head)
        if options.get("norm"):
            self.dense = nn.Linear(width, width, bias=options["dense_bias"])
            self.activation = ACTIVATIONS[options["activation"]]()
            self.norm = nn.LayerNorm(width, eps=spec.layer_norm_eps, bias=options["norm_bias"])
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Linear(width, len(spec.labels))

    def each(self, hidden: Tensor) -> dict[str, Tensor]:
        """States [..., H] -> logits [..., C] float32."""
        hidden = self.norm(self.activation(self.dense(hidden)))
        return {LOGITS: self.classifier(self.dropout(hidden)).float()}

    def has_target(self, target: Tensor) -> Tensor:
        return (target >= 0).any(-1)


def counted(target: Tensor | None, outputs: Outputs) -> Tensor:
    """Which tokens count in a loss: [B, S] bool.

    Args:
        target: [B, S], ``NO_TOKEN`` at those that do not. Without it count all tokens of a row:
            those behind its end have outputs of zero.
    """
    return (outputs[LOGITS] != 0).any(-1) if target is None else target != NO_TOKEN


def mean_of(values: Tensor, which: Tensor) -> Tensor:
    """The mean of each row's values at some of its tokens, 0 where there are none.

    [B, S] and [B, S] bool -> [B].
    """
    return torch.where(which, values, 0.0).sum(-1) / which.sum(-1).clamp_min(1)
