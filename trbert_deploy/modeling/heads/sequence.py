"""What all heads have that answer a text with some numbers."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.blocks.activations import ACTIVATIONS
from trbert_deploy.modeling.heads.head import Head
from trbert_deploy.modeling.layouts.layout import Layout
from trbert_deploy.tasks.text_classification import LOGITS

#: Weight of the labels beside the teacher's answers.
LABEL_WEIGHT = 0.1


class SequenceHead(Head):
    """A dense layer over one state of each text, an activation, then a linear layer.

    All families' classifiers are of this kind. What differs stands in ``spec.head``: ``pooling``
    (``first`` token or ``mean``), ``activation``, and whether a normalization follows (``norm``).
    """

    def __init__(
        self,
        spec: EncoderSpec,
        pooling: str = "first",
        activation: str = "tanh",
        norm: bool = False,
        norm_bias: bool = True,
        dense_bias: bool = True,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.pooler = nn.Linear(spec.hidden_size, spec.hidden_size, bias=dense_bias)
        self.activation = ACTIVATIONS[activation]()
        self.norm = (
            nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps, bias=norm_bias)
            if norm
            else None
        )
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Linear(spec.hidden_size, len(spec.labels))

    @classmethod
    def build(cls, spec: EncoderSpec) -> Self:
        return cls(spec, **spec.head)

    @classmethod
    def build_exit(cls, spec: EncoderSpec) -> Self:
        """Over the mean of the tokens' states: the first token has not heard of all others yet."""
        return cls(spec, **{**spec.head, "pooling": "mean"})

    def forward(self, hidden: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Last states [..., H] -> logits [B, C] float32."""
        pooled = layout.first(hidden) if self.pooling == "first" else layout.mean(hidden)
        pooled = self.activation(self.pooler(pooled))
        if self.norm is not None:
            pooled = self.norm(pooled)
        return {LOGITS: self.classifier(self.dropout(pooled)).float()}
