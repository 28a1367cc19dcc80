"""What heads have in common of whose labels one is right for a token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, one_hot

from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.heads.sequence import LABEL_WEIGHT
from trbert_deploy.modeling.heads.text_classification import softened_divergence
from trbert_deploy.modeling.heads.token_logits import counted, mean_of
from trbert_deploy.modeling.heads.tokens import TokensHead
from trbert_deploy.tasks.task import NO_TOKEN
from trbert_deploy.tasks.text_classification import LOGITS


class OneLabelHead(TokensHead):
    """Logits [B, S, C] of tokens, of all or of some; targets are [B, S] int64."""

    def loss(
        self, outputs: Outputs, target: Tensor | None, teacher: Outputs | None = None
    ) -> Tensor:
        """Cross-entropy of the labels that are known, or distillation with a little of it.

        Distillation is that of text classification, the mean over all tokens that count.
        """
        logits = outputs[LOGITS]
        if teacher is None:
            assert target is not None  # a loss without labels needs a teacher
            return _label_loss(logits, target)
        divergence = softened_divergence(logits, teacher[LOGITS])
        distilled = mean_of(divergence, counted(target, teacher))
        return (
            distilled if target is None else distilled + LABEL_WEIGHT * _label_loss(logits, target)
        )

    def path_loss(self, outputs: Outputs, target: Tensor | None, teacher: Outputs) -> Tensor:
        """Cross-entropy with the teacher's probabilities, or their mean with the labels'."""
        logits, wanted = outputs[LOGITS], teacher[LOGITS].softmax(-1)
        which = counted(target, teacher)
        if target is not None:
            labels = one_hot(target.clamp_min(0), wanted.shape[-1]).float()
            wanted = torch.where((target >= 0)[..., None], (labels + wanted) / 2, wanted)
        paths = len(logits) // len(wanted)
        losses = -(wanted.repeat(paths, 1, 1) * log_softmax(logits, -1)).sum(-1)
        return mean_of(losses, which.repeat(paths, 1)).view(paths, len(wanted))

    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Share of the tokens whose label is known that are answered right."""
        return mean_of((outputs[LOGITS].argmax(-1) == target).float(), target >= 0)

    def has_target(self, target: Tensor) -> Tensor:
        return (target >= 0).any(-1)

    def answers(self, outputs: Outputs, like: Tensor) -> Tensor:
        return torch.where(like == NO_TOKEN, NO_TOKEN, outputs[LOGITS].argmax(-1))


def _label_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the labels [B, S] that are known, their mean in each row: [B]."""
    known = target >= 0
    losses = cross_entropy(logits.movedim(-1, 1), target.clamp_min(0), reduction="none")
    return mean_of(losses, known)
