"""The head for several labels per text: a logit for each, which stands for itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.heads.numbers import NumbersHead
from trbert_deploy.tasks.multi_label import MultiLabelClassification
from trbert_deploy.tasks.text_classification import LOGITS


class MultiLabelHead(NumbersHead):
    """Numbers are probabilities, and their difference is binary cross-entropy."""

    task = MultiLabelClassification.name
    problem = MultiLabelClassification.problem

    def numbers(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def difference(self, logits: Tensor, wanted: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits, wanted, reduction="none")

    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Share of the labels that are decided right, by a probability of one half."""
        right = ((outputs[LOGITS] > 0) == (target > 0.5)).float().mean(-1)
        return torch.where(self.has_target(target), right, 0.0)

    def answers(self, outputs: Outputs, like: Tensor) -> Tensor:
        return (outputs[LOGITS] > 0).float()
