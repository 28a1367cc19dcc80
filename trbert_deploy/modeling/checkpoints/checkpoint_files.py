"""The files of a checkpoint directory that belong together, and change in one step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trbert_deploy.bundle.manifest import LEXICON, SAMPLES
from trbert_deploy.journal import read_settled, settle
from trbert_deploy.modeling.checkpoints.sentence_transformers import MODULES_FILES
from trbert_deploy.modeling.checkpoints.sources import CONFIG_FILE
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILES
from trbert_deploy.modeling.checkpoints.weight_files import SAFETENSORS_FILE

REDUCTION_FILE = "reduction.json"
RECIPE_FILE = "recipe.toml"
CHECKPOINT_FILES = (
    CONFIG_FILE,
    SAFETENSORS_FILE,
    REDUCTION_FILE,
    RECIPE_FILE,
    SAMPLES,
    LEXICON,
    *TOKENIZER_FILES,
    *MODULES_FILES,
)

Result = TypeVar("Result")


def settled(where: str) -> str:
    """Where to read a checkpoint that a killed process may have been writing.

    Args:
        where: directory or hub name, which is returned but in that case.
    """
    path = Path(where)
    if not path.is_dir():
        return where
    source = settle(path, CHECKPOINT_FILES)
    return where if source == path else str(source)


def read_whole(where: str, read: Callable[[str], Result]) -> Result:
    """What ``read`` makes of a checkpoint, of an old or a new one, while others write it.

    Args:
        where: directory or hub name.
        read: given where the files are.
    """
    path = Path(where)
    if not path.is_dir():
        return read(where)
    return read_settled(
        path, CHECKPOINT_FILES, lambda source: read(where if source == path else str(source))
    )
