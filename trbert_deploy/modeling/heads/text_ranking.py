"""The head for a score of a query and a passage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.heads.numbers import NumbersHead
from trbert_deploy.tasks.activations import IDENTITY, SIGMOID
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.tasks.text_ranking import ACTIVATION, TextRanking

#: Weight of the margins between passages beside a score's own difference.
MARGIN_WEIGHT = 0.05


class TextRankingHead(NumbersHead):
    """Targets are [2] float32: how relevant a passage is, and its query's number; or NaN.

    A score by a sigmoid is taught by binary cross-entropy, a raw one by the squared difference.
    Of a teacher the margins between passages are matched besides (Hofstätter et al. 2020): a
    sigmoid says next to nothing of the order of passages that are surely right or surely wrong.
    """

    task = TextRanking.name

    def __init__(self, spec: EncoderSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        self._raw = self.is_raw(spec)

    def is_raw(self, spec: EncoderSpec) -> bool:
        """Whether the score is the logit itself."""
        return bool(spec.answers.get(ACTIVATION, SIGMOID) == IDENTITY)

    def numbers(self, logits: Tensor) -> Tensor:
        return logits if self._raw else logits.sigmoid()

    def difference(self, logits: Tensor, wanted: Tensor) -> Tensor:
        return (logits - wanted).square() if self._raw else _cross_entropy(logits, wanted)

    def loss(
        self, outputs: Outputs, target: Tensor | None, teacher: Outputs | None = None
    ) -> Tensor:
        losses = super().loss(outputs, target, teacher)
        if teacher is None:
            return losses
        return losses + MARGIN_WEIGHT * _margins(outputs[LOGITS], teacher[LOGITS])

    def path_loss(self, outputs: Outputs, target: Tensor | None, teacher: Outputs) -> Tensor:
        """The difference from the teacher: labels say who is relevant, and not by which score."""
        logits = outputs[LOGITS].unflatten(0, (-1, len(teacher[LOGITS])))
        margins = torch.stack([_margins(path, teacher[LOGITS]) for path in logits])
        return super().path_loss(outputs, None, teacher) + MARGIN_WEIGHT * margins

    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        """1 where the logit is above 0 for a relevant passage, and not for another."""
        right = (outputs[LOGITS][:, 0] > 0) == (target[:, 0] > 0)
        return torch.where(self.has_target(target), right.float(), 0.0)

    def answers(self, outputs: Outputs, like: Tensor) -> Tensor:
        relevant = (outputs[LOGITS] > 0).float()
        return torch.cat([relevant, torch.zeros_like(relevant)], -1)

    def _from_targets(self, logits: Tensor, target: Tensor) -> Tensor:
        relevance = target[:, :1].nan_to_num().clamp(0.0, 1.0)
        losses = _cross_entropy(logits, relevance).mean(-1)
        return torch.where(self.has_target(target), losses, 0.0)


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, wanted, reduction="none")


def _margins(logits: Tensor, wanted: Tensor) -> Tensor:
    """How far each row's margins to the batch's rows are from those that are wanted: [B].

    The mean of squared differences: of two margins the difference is that of two errors, and the
    squares of all of those come to the squares of errors about their mean, and a constant.
    """
    errors = logits - wanted
    return (errors - errors.mean(0)).square().mean(-1)
