"""Gradients of a step, of a loss alone or with a second one that gives way to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trbert_deploy.training import processes


def set_gradients(
    optimizer: torch.optim.Optimizer, loss: Tensor, yielding: Tensor | None = None
) -> None:
    """Give an optimizer's parameters the gradient of a step, summed over all processes.

    Args:
        loss: scalar.
        yielding: a second scalar. Where its gradient opposes that of ``loss``, seen as two vectors
            over all parameters, what opposes is taken out: g2 - min(0, g1 g2 / g1 g1) g1 is added
            to g1 (GAML-BERT, Zhu et al. 2021, after Yu et al. 2020, gradient surgery).
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    loss.backward(retain_graph=yielding is not None)
    processes.sum_gradients(parameters)
    if yielding is None:
        return
    own = [each.grad for each in parameters]
    optimizer.zero_grad(set_to_none=True)
    yielding.backward()
    processes.sum_gradients(parameters)
    both = [
        (first, second.grad)
        for first, second in zip(own, parameters, strict=True)
        if first is not None and second.grad is not None
    ]
    opposing = min(0.0, _product(both) / max(_product([(g, g) for g, _ in both]), 1e-30))
    for parameter, first in zip(parameters, own, strict=True):
        second = parameter.grad
        if first is None:
            continue
        parameter.grad = first if second is None else second.add_(first, alpha=1.0 - opposing)


def _product(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The inner product of two vectors, each in parts."""
    return sum(float((first * second).sum()) for first, second in pairs)
