"""Answers with a checkpoint directory, on PyTorch, without an export."""

from __future__ import annotations

import tempfile
from pathlib import Path

from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.checkpoints.checkpoint import (
    REDUCTION_FILE,
    load_checkpoint,
    load_hf_config,
)
from trbert_deploy.modeling.checkpoints.pretrained import is_fine_tuned, load_pretrained
from trbert_deploy.modeling.checkpoints.tokenizer import tokenizer_directory
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.torch_backend import TorchBackend, set_threads
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.tokenizing import TextTokenizer


def load_checkpoint_pipeline(path: Path, *, threads: int = 0) -> Pipeline:
    """Open a checkpoint of ``trbert-deploy train``, or another fine-tuned one, which has no cuts.

    Args:
        path: the checkpoint directory.
        threads: threads of PyTorch; 0 lets it choose.

    Raises:
        StorageError, CheckpointError: the directory is missing, no checkpoint, or damaged.
    """
    model, max_length = _load_model(path)
    with tempfile.TemporaryDirectory() as scratch:
        directory = tokenizer_directory(str(path), Path(scratch))
        tokenizer = TextTokenizer(directory / TOKENIZER_FILE, max_length)
    set_threads(threads)
    chain = Chain(TorchBackend(model), model.reduction, model.spec.num_layers)
    return Pipeline(path, model.spec, tokenizer, chain)


def _load_model(path: Path) -> tuple[ReducedModel, int]:
    """The model, and the most tokens of a row that it takes."""
    if (path / REDUCTION_FILE).is_file():
        checkpoint = load_checkpoint(path)
        return checkpoint.model, checkpoint.max_length
    if not is_fine_tuned(load_hf_config(str(path))):
        raise CheckpointError(
            f"{path} has no classification head: expected a fine-tuned model; make one with "
            f"trbert-deploy train --model {path}"
        )
    model = load_pretrained(str(path), (), ReductionConfig()).model  # with the labels it has
    return model.eval(), model.spec.max_positions
