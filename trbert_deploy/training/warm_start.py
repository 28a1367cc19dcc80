"""Going on from a model that drops tokens already, in place of new policies.

A model that was trained for a small saving is a better beginning for a large one than the teacher
is: its encoder has learned to do without the tokens that are dropped first.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.errors import CheckpointError, ConfigError
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.modeling.checkpoints.checkpoint_files import REDUCTION_FILE, settled
from trbert_deploy.modeling.model import ReducedModel


def load_warm_start(path: str, teacher: EncoderSpec, cuts: str | None) -> ReducedModel:
    """The model of a reduced checkpoint, made for the joint stage to go on from.

    Args:
        path: directory of the checkpoint.
        teacher: whose answers will be learned.
        cuts: those that were asked for, if any.

    Raises:
        StorageError, CheckpointError: no usable checkpoint, one without cuts, or of another
            shape than the teacher.
        ConfigError: its cuts are not those that were asked for.
    """
    directory = Path(path)
    if directory.is_dir() and not (Path(settled(path)) / REDUCTION_FILE).is_file():
        raise CheckpointError(
            f"{path} has no {REDUCTION_FILE}: expected a checkpoint that trbert-deploy train wrote"
        )
    model = load_checkpoint(directory).model
    if not model.reduction.cuts:
        raise CheckpointError(
            f"{path} drops no tokens: warm-start from a model that was trained with cuts"
        )
    own, wanted = asdict(model.spec), asdict(teacher)
    for name, value in wanted.items():
        if own[name] != value:
            raise CheckpointError(
                f"{path} has the {name} {own[name]}, the teacher {value}: warm-start from a "
                "model that was trained from this teacher, at the same --max-length"
            )
    if cuts is not None and ReductionConfig.parse(cuts).places != model.reduction.places:
        raise ConfigError(
            f"{path} drops tokens at {model.reduction.places}, not at {cuts}: leave cuts out "
            "of the recipe, or train without --warm-start"
        )
    return model
