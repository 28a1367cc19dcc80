"""The feed-forward network: the second half of a layer."""

from __future__ import annotations

from torch import Tensor, nn

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.blocks.activations import ACTIVATIONS


class FeedForward(nn.Module):
    """The feed-forward network with its residual and normalization.

    Gated (``spec.gated_ffn``), the activation of one product is multiplied by another (GeGLU,
    Shazeer 2020).

    Args:
        linear_bias, norm_first, norm: as ``Attention`` takes them.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        linear_bias: bool = True,
        norm_first: bool = False,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.up = nn.Linear(spec.hidden_size, spec.ffn_size, bias=linear_bias)
        self.gate = (
            nn.Linear(spec.hidden_size, spec.ffn_size, bias=linear_bias) if spec.gated_ffn else None
        )
        self.activation = ACTIVATIONS[spec.activation]()
        self.down = nn.Linear(spec.ffn_size, spec.hidden_size, bias=linear_bias)
        self.norm = norm or nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., H] -> hidden [..., H]."""
        states = self.norm(hidden) if self.norm_first else hidden
        inner = self.activation(self.up(states))
        if self.gate is not None:
            inner = inner * self.gate(states)
        change = self.dropout(self.down(inner))
        return hidden + change if self.norm_first else self.norm(hidden + change)
