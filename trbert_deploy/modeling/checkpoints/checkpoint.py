"""The checkpoint directory: what training writes, and export and PyTorch read.

It is a Hugging Face checkpoint (config.json, model.safetensors, the tokenizer) that
``AutoModelForSequenceClassification`` loads as the dense model, with the policies as further
tensors and reduction.json beside it: the cuts, the maximum length, the training figures.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from trbert_deploy.bundle.bundle import SAMPLES
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import CheckpointError, StorageError, first_line
from trbert_deploy.files import (
    read_json,
    read_json_lines,
    require_directory,
    staged_files,
    write_json,
    write_json_lines,
)
from trbert_deploy.modeling.checkpoints.tokenizer import copy_tokenizer, remove_other_tokenizer
from trbert_deploy.modeling.families.registry import FAMILIES, family_module
from trbert_deploy.modeling.model import ReducedModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
REDUCTION_FILE = "reduction.json"
CHECKPOINT_VERSION = 1


@dataclass
class Checkpoint:
    """A model with what belongs to it.

    Attributes:
        model: encoder, policies and head.
        tokenizer_dir: directory with the tokenizer's files.
        max_length: longest row of tokens that the model was made for, special tokens included.
        training: figures and options of the training that led here (JSON values).
        samples: a few texts of the task, for benchmarks.
    """

    model: ReducedModel
    tokenizer_dir: Path
    max_length: int
    training: dict[str, Any] = field(default_factory=dict)
    samples: tuple[str, ...] = ()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint into a directory, beside what else is there, whole or not at all."""
    model = checkpoint.model
    family = FAMILIES[model.spec.family]
    names = family.parameter_names(model.spec.num_layers)
    tensors = {
        names.get(name, name): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    with staged_files(path) as staging:
        write_safetensors(staging / WEIGHTS_FILE, tensors, {"format": "pt"})
        write_json(staging / CONFIG_FILE, family.hf_config(model.spec))
        write_json(
            staging / REDUCTION_FILE,
            {
                "version": CHECKPOINT_VERSION,
                "max_length": checkpoint.max_length,
                "reduction": model.reduction.to_json(),
                "training": checkpoint.training,
            },
        )
        copy_tokenizer(checkpoint.tokenizer_dir, staging)
        write_json_lines(staging / SAMPLES, [{"text": text} for text in checkpoint.samples])
    remove_other_tokenizer(checkpoint.tokenizer_dir, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint directory that ``save_checkpoint`` wrote.

    Raises:
        StorageError: no such directory.
        CheckpointError: no checkpoint, an unsupported family, missing or damaged files.
    """
    require_directory(path, "checkpoint", "trbert-deploy train")
    if not (path / CONFIG_FILE).is_file():
        raise CheckpointError(f"{path} is not a checkpoint: it has no {CONFIG_FILE}")
    config = load_hf_config(str(path))
    if not (path / REDUCTION_FILE).is_file():
        raise CheckpointError(
            f"{path} has no {REDUCTION_FILE}, so no policies: make it with "
            f"trbert-deploy train --model {path}"
        )
    described = read_json(path / REDUCTION_FILE, CheckpointError)
    if described.get("version") != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path / REDUCTION_FILE} has version {described.get('version')}: this release reads "
            f"version {CHECKPOINT_VERSION}; upgrade trbert-deploy or train again"
        )
    family = family_module(config.model_type, str(path))
    labels = labels_of(config)
    try:
        reduction = ReductionConfig.from_json(described["reduction"])
        max_length = int(described["max_length"])
        training = dict(described.get("training", {}))
    except (KeyError, TypeError, ValueError) as problem:
        raise CheckpointError(f"{path / REDUCTION_FILE} is damaged: {problem}") from None
    model = ReducedModel(family.encoder_spec(config, labels), reduction)
    load_parameters(model, read_safetensors(path / WEIGHTS_FILE), str(path))
    samples = tuple(row["text"] for row in read_json_lines(path / SAMPLES, CheckpointError))
    return Checkpoint(model.eval(), path, max_length, training, samples)


def write_safetensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as problem:  # so it calls a full disk, too
        raise StorageError(f"{path.name} cannot be written: {problem}") from None
    path.chmod(0o644)  # the library makes it readable for its owner alone


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError) as problem:
        raise CheckpointError(f"{path} is damaged or truncated: {problem}") from None


def load_parameters(model: ReducedModel, tensors: dict[str, Tensor], where: str) -> None:
    """Load tensors under Hugging Face names into ``model``.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    names = FAMILIES[model.spec.family].parameter_names(model.spec.num_layers)
    for ours, parameter in model.state_dict().items():
        theirs = names.get(ours, ours)
        tensor = tensors.get(theirs)
        if tensor is None:
            raise CheckpointError(f"{where} has no tensor {theirs}")
        if tensor.shape != parameter.shape:
            raise CheckpointError(
                f"{where}: tensor {theirs} has the shape {list(tensor.shape)}, "
                f"expected {list(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(tensor)


def load_hf_config(model: str) -> Any:
    """The Hugging Face configuration of a directory or hub name.

    Raises:
        CheckpointError: there is none, or its family is not supported.
    """
    local = Path(model).is_dir()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the error below says it all
    try:
        config = AutoConfig.from_pretrained(model, local_files_only=local)
    except (OSError, ValueError, KeyError) as problem:
        if local:
            described = read_json(Path(model) / CONFIG_FILE, CheckpointError)
            family_module(described.get("model_type"), model)
        what = model if local else f"{model} is no directory here, and from the hub it"
        raise CheckpointError(f"{what} cannot be loaded: {first_line(problem)}") from None
    family_module(config.model_type, model)
    return config


def labels_of(config: Any) -> tuple[str, ...]:
    """Class names in the order of the logits."""
    return tuple(str(config.id2label[index]) for index in range(config.num_labels))
