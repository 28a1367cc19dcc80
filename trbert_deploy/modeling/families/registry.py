"""The backbone families: which Hugging Face model types can be loaded, and by which module."""

from __future__ import annotations

from types import ModuleType

from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.families import bert

FAMILIES: dict[str, ModuleType] = {"bert": bert}


def family_module(model_type: str | None, where: str) -> ModuleType:
    """The module that knows ``model_type``.

    Raises:
        CheckpointError: an unsupported family.
    """
    try:
        return FAMILIES[model_type or ""]
    except KeyError:
        raise CheckpointError(
            f"{where} is of the family {model_type!r}: supported are {', '.join(sorted(FAMILIES))}"
        ) from None
