"""The backbone families: which Hugging Face model types can be loaded, and by which module."""

from __future__ import annotations

from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.families.bert import Bert
from trbert_deploy.modeling.families.deberta_v2 import DebertaV2
from trbert_deploy.modeling.families.distilbert import DistilBert
from trbert_deploy.modeling.families.electra import Electra
from trbert_deploy.modeling.families.family import Family
from trbert_deploy.modeling.families.modernbert import ModernBert
from trbert_deploy.modeling.families.mpnet import MPNet
from trbert_deploy.modeling.families.roberta import Camembert, Roberta, XlmRoberta

#: ``model_type`` -> family.
FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Let checkpoints of a family be loaded."""
    for model_type in family.model_types:
        FAMILIES[model_type] = family


# One line per family.
for known in (
    Bert(),
    Roberta(),
    XlmRoberta(),
    Camembert(),
    DistilBert(),
    Electra(),
    MPNet(),
    ModernBert(),
    DebertaV2(),
):
    register_family(known)


def family_of(model_type: str | None, where: str) -> Family:
    """The family that reads ``model_type``.

    Raises:
        CheckpointError: an unsupported family.
    """
    try:
        return FAMILIES[model_type or ""]
    except KeyError:
        raise CheckpointError(
            f"{where} is of the family {model_type!r}: supported are {', '.join(sorted(FAMILIES))}"
        ) from None
