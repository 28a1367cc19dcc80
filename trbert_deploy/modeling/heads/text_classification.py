"""The head for one label per text."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, one_hot, softmax

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.blocks.activations import ACTIVATIONS
from trbert_deploy.modeling.heads.head import Head, Outputs
from trbert_deploy.modeling.layouts.layout import Layout
from trbert_deploy.tasks.text_classification import LOGITS, TextClassification

TEMPERATURE = 2.0
LABEL_WEIGHT = 0.1
_NO_TARGET = -100


class TextClassificationHead(Head):
    """A dense layer over one state of each text, an activation, then a linear layer.

    All families' classifiers are of this kind. What differs stands in ``spec.head``: ``pooling``
    (``first`` token or ``mean``), ``activation``, and whether a normalization follows (``norm``).
    """

    task = TextClassification.name
    no_target = _NO_TARGET

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

    def forward(self, hidden: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Last states [..., H] -> logits [B, C] float32."""
        pooled = layout.first(hidden) if self.pooling == "first" else layout.mean(hidden)
        pooled = self.activation(self.pooler(pooled))
        if self.norm is not None:
            pooled = self.norm(pooled)
        return {LOGITS: self.classifier(self.dropout(pooled)).float()}

    def loss(
        self, outputs: Outputs, target: Tensor | None, teacher: Outputs | None = None
    ) -> Tensor:
        """Cross-entropy of the labels, or knowledge distillation with a little of it.

        Distillation (Hinton et al. 2015) is the KL divergence from the teacher's probabilities,
        both softened by ``TEMPERATURE``, times its square to keep the size of the gradient.
        """
        logits = outputs[LOGITS]
        if teacher is None:
            return _label_loss(logits, target)
        wanted = softmax(teacher[LOGITS] / TEMPERATURE, -1)
        difference = wanted.clamp_min(1e-12).log() - log_softmax(logits / TEMPERATURE, -1)
        divergence = (wanted * difference).sum(-1) * TEMPERATURE**2
        return (
            divergence
            if target is None
            else divergence + LABEL_WEIGHT * _label_loss(logits, target)
        )

    def path_loss(self, outputs: Outputs, target: Tensor | None, teacher: Outputs) -> Tensor:
        """Cross-entropy with the teacher's probabilities, or their mean with the labels'."""
        logits, wanted = outputs[LOGITS], teacher[LOGITS].softmax(-1)
        if target is not None:
            labels = one_hot(target.clamp_min(0), wanted.shape[-1]).float()
            known = self.has_target(target)[:, None]
            wanted = torch.where(known, (labels + wanted) / 2, wanted)
        paths = len(logits) // len(wanted)
        losses = -(wanted.repeat(paths, 1) * log_softmax(logits, -1)).sum(-1)
        return losses.view(paths, len(wanted))

    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        return (outputs[LOGITS].argmax(-1) == target).float()

    def answers(self, outputs: Outputs) -> Tensor:
        return outputs[LOGITS].argmax(-1)

    def has_target(self, target: Tensor) -> Tensor:
        return target >= 0


def _label_loss(logits: Tensor, target: Tensor | None) -> Tensor:
    assert target is not None  # a loss without labels needs a teacher
    return cross_entropy(logits, target, reduction="none", ignore_index=_NO_TARGET)
