"""Puts tensors under our names into a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.families.family import their_name
from trbert_deploy.modeling.model import ReducedModel


def load_parameters(
    model: ReducedModel, tensors: Mapping[str, Tensor], where: str, fresh: Sequence[str] = ()
) -> None:
    """Load tensors into ``model``; further ones are left alone.

    Args:
        where: what errors call their source.
        fresh: beginnings of the names that may be missing and keep their initialization.

    Raises:
        CheckpointError: a tensor is missing or has another shape; it is called by its name in the
            source.
    """
    modules = model.family.modules(model.spec)
    for ours, parameter in model.state_dict().items():
        tensor = tensors.get(ours)
        name = their_name(ours, modules)
        if tensor is None:
            if ours.startswith(tuple(fresh)):
                continue
            raise CheckpointError(f"{where} has no tensor {name}")
        if tensor.shape != parameter.shape:
            raise CheckpointError(
                f"{where}: tensor {name} has the shape {list(tensor.shape)}, "
                f"expected {list(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(tensor)
