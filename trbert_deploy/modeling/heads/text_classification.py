"""The head for one label per text."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, one_hot, softmax

from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.heads.sequence import LABEL_WEIGHT, SequenceHead
from trbert_deploy.tasks.text_classification import LOGITS, NO_TARGET, TextClassification

TEMPERATURE = 2.0


class TextClassificationHead(SequenceHead):
    """A logit for each label, of which one is right."""

    task = TextClassification.name

    def loss(
        self, outputs: Outputs, target: Tensor | None, teacher: Outputs | None = None
    ) -> Tensor:
        """Cross-entropy of the labels, or knowledge distillation with a little of it.

        Distillation is ``softened_divergence`` from the teacher.
        """
        logits = outputs[LOGITS]
        if teacher is None:
            return _label_loss(logits, target)
        divergence = softened_divergence(logits, teacher[LOGITS])
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

    def answers(self, outputs: Outputs, like: Tensor) -> Tensor:
        return outputs[LOGITS].argmax(-1)

    def has_target(self, target: Tensor) -> Tensor:
        return target >= 0


def softened_divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """How far probabilities are from a teacher's, by logits [..., C] each: [...].

    Distillation (Hinton et al. 2015): the KL divergence, both softened by ``TEMPERATURE``, times
    its square to keep the size of the gradient.
    """
    wanted = softmax(teacher / TEMPERATURE, -1)
    difference = wanted.clamp_min(1e-12).log() - log_softmax(logits / TEMPERATURE, -1)
    return (wanted * difference).sum(-1) * TEMPERATURE**2


def _label_loss(logits: Tensor, target: Tensor | None) -> Tensor:
    assert target is not None  # a loss without labels needs a teacher
    return cross_entropy(logits, target, reduction="none", ignore_index=NO_TARGET)
