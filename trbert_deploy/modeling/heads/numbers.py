"""What heads have in common whose targets are numbers, one for each logit."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.heads.sequence import LABEL_WEIGHT, SequenceHead
from trbert_deploy.tasks.text_classification import LOGITS


class NumbersHead(SequenceHead):
    """Targets are [C] float32, NaN where a row has none."""

    @abstractmethod
    def numbers(self, logits: Tensor) -> Tensor:
        """What logits [..., C] say, as targets have it."""

    @abstractmethod
    def difference(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """How far logits are from the numbers that are wanted: [..., C]."""

    def loss(
        self, outputs: Outputs, target: Tensor | None, teacher: Outputs | None = None
    ) -> Tensor:
        """The difference from the targets, mean of all logits.

        Or that from the teacher's numbers, less what is left of it at the teacher's own logits,
        with a little of the targets'.
        """
        logits = outputs[LOGITS]
        if teacher is None:
            assert target is not None  # a loss without labels needs a teacher
            return self._from_targets(logits, target)
        wanted = self.numbers(teacher[LOGITS])
        least = self.difference(teacher[LOGITS], wanted)
        divergence = (self.difference(logits, wanted) - least).mean(-1)
        if target is None:
            return divergence
        return divergence + LABEL_WEIGHT * self._from_targets(logits, target)

    def path_loss(self, outputs: Outputs, target: Tensor | None, teacher: Outputs) -> Tensor:
        """The difference from the teacher's numbers, or from their mean with the targets."""
        logits, wanted = outputs[LOGITS], self.numbers(teacher[LOGITS])
        if target is not None:
            known = self.has_target(target)[:, None]
            wanted = torch.where(known, (target.nan_to_num() + wanted) / 2, wanted)
        paths = len(logits) // len(wanted)
        losses = self.difference(logits, wanted.repeat(paths, 1)).mean(-1)
        return losses.view(paths, len(wanted))

    def has_target(self, target: Tensor) -> Tensor:
        return ~target.isnan().any(-1)

    def _from_targets(self, logits: Tensor, target: Tensor) -> Tensor:
        losses = self.difference(logits, target.nan_to_num()).mean(-1)
        return torch.where(self.has_target(target), losses, 0.0)
