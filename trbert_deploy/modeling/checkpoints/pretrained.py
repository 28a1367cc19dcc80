"""Starts a model from any Hugging Face checkpoint directory or hub name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging

from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import CheckpointError, DataError, first_line
from trbert_deploy.modeling.checkpoints.checkpoint import (
    labels_of,
    load_hf_config,
    load_parameters,
)
from trbert_deploy.modeling.families.registry import family_module
from trbert_deploy.modeling.model import ReducedModel


@dataclass(frozen=True)
class Pretrained:
    """A model to train further.

    Attributes:
        model: its policies are new; its head too unless ``fine_tuned``.
        fine_tuned: the source already has a head for the labels.
    """

    model: ReducedModel
    fine_tuned: bool


def load_pretrained(
    source: str, labels: Sequence[str], reduction: ReductionConfig | None
) -> Pretrained:
    """Load an encoder, with its head if it was fine-tuned for ``labels``.

    Args:
        source: checkpoint directory or hub name.
        labels: class names found in the training data.
        reduction: the cuts, or None for the default places.

    Raises:
        CheckpointError: not loadable, or an unsupported family.
        DataError: the source is fine-tuned for other labels.
        ConfigError: a cut out of range.
    """
    config = load_hf_config(source)
    family = family_module(config.model_type, source)
    fine_tuned = is_fine_tuned(config)
    if fine_tuned:
        known = labels_of(config)
        unknown = sorted(set(labels) - set(known))
        if unknown:
            raise DataError(
                f"the data has labels that {source} does not know: {', '.join(unknown)} "
                f"(it knows {', '.join(known)})"
            )
        labels = known
    spec = family.encoder_spec(config, tuple(labels))
    reduction = reduction if reduction is not None else ReductionConfig.default_for(spec.num_layers)
    model = ReducedModel(spec, reduction)
    if fine_tuned:
        tensors = _state(AutoModelForSequenceClassification, source)
    else:
        tensors = family.encoder_parameters(_state(AutoModel, source))
    # What the source does not have (a new head, new policies) keeps its initialization.
    names = family.parameter_names(spec.num_layers)
    fresh = {names.get(ours, ours): value for ours, value in model.state_dict().items()}
    load_parameters(model, {**fresh, **tensors}, source)
    return Pretrained(model, fine_tuned)


def is_fine_tuned(config: Any) -> bool:
    """Whether a checkpoint of this Hugging Face configuration has a classification head."""
    architectures = getattr(config, "architectures", None) or [""]
    return str(architectures[0]).endswith("ForSequenceClassification")


def _state(auto_class: Any, source: str) -> dict[str, Any]:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = auto_class.from_pretrained(source, local_files_only=Path(source).is_dir())
    except (OSError, ValueError, RuntimeError) as problem:
        raise CheckpointError(f"{source} cannot be loaded: {first_line(problem)}") from None
    return {name: tensor.float() for name, tensor in model.state_dict().items()}
