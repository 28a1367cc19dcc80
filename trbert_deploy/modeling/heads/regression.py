"""The head for numbers: what the last layer gives, as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.heads.numbers import NumbersHead
from trbert_deploy.tasks.regression import Regression
from trbert_deploy.tasks.text_classification import LOGITS


class RegressionHead(NumbersHead):
    """The difference of numbers is squared."""

    task = Regression.name
    problem = Regression.problem

    def numbers(self, logits: Tensor) -> Tensor:
        return logits

    def difference(self, logits: Tensor, wanted: Tensor) -> Tensor:
        return (logits - wanted).square()

    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        """1 where a number is right, 1/2 where it is off by 1, and so on."""
        distance = (outputs[LOGITS] - target.nan_to_num()).abs().mean(-1)
        return torch.where(self.has_target(target), 1.0 / (1.0 + distance), 0.0)

    def answers(self, outputs: Outputs, like: Tensor) -> Tensor:
        return outputs[LOGITS]
