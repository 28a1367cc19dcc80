"""Answers with a checkpoint directory, on PyTorch, without an export."""

from __future__ import annotations

import tempfile
from pathlib import Path

from trbert_deploy.modeling.checkpoints.checkpoint import (
    load_checkpoint,
)
from trbert_deploy.modeling.checkpoints.tokenizer import tokenizer_directory
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.modeling.torch_backend import TorchBackend, set_threads
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.tokenizing import tokenizer_for
from trbert_deploy.tasks.registry import task_of


def load_checkpoint_pipeline(path: Path, *, threads: int = 0, task: str | None = None) -> Pipeline:
    """Open a checkpoint of ``trbert-deploy train``, or another fine-tuned one, which has no cuts.

    Args:
        path: the checkpoint directory.
        threads: threads of PyTorch; 0 lets it choose.
        task: that it is asked for, as ``load_checkpoint`` takes it.

    Raises:
        StorageError, CheckpointError: the directory is missing, no checkpoint, or damaged.
        ConfigError: a head for another task.
    """
    checkpoint = load_checkpoint(path, task)
    model = checkpoint.model
    with tempfile.TemporaryDirectory() as scratch:
        directory = tokenizer_directory(str(path), Path(scratch))
        tokenizer = tokenizer_for(
            directory / TOKENIZER_FILE, task_of(model.spec), checkpoint.max_length
        )
    set_threads(threads)
    chain = Chain(
        TorchBackend(model),
        model.reduction,
        model.spec.num_layers,
        task=task_of(model.spec),
    )
    pipeline = Pipeline(path, model.spec, tokenizer, chain)
    return pipeline.with_lexicon(checkpoint.lexicon, str(path))
