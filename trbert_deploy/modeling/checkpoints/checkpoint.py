"""The checkpoint directory: what training writes, and export and PyTorch read.

It is a Hugging Face checkpoint (config.json, model.safetensors, the tokenizer) that
``AutoModelForSequenceClassification`` loads as the dense model, with the policies as further
tensors and reduction.json beside it: the cuts, the maximum length, the training figures; and
recipe.toml, how it was trained. A fine-tuned checkpoint without reduction.json is one without cuts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from trbert_deploy.bundle.manifest import LEXICON, SAMPLES
from trbert_deploy.bundle.samples import Sample, read_samples, write_samples
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.errors import CheckpointError
from trbert_deploy.files import (
    read_json,
    require_directory,
    write_json,
    write_text,
)
from trbert_deploy.journal import staged_files
from trbert_deploy.lexicon.entries import Entry, read_entries, write_entries
from trbert_deploy.modeling.checkpoints.checkpoint_files import (
    CHECKPOINT_FILES,
    RECIPE_FILE,
    REDUCTION_FILE,
    read_whole,
)
from trbert_deploy.modeling.checkpoints.hf_source import (
    HfSource,
    open_source,
)
from trbert_deploy.modeling.checkpoints.parameters import load_parameters
from trbert_deploy.modeling.checkpoints.pretrained import load_with_head
from trbert_deploy.modeling.checkpoints.sentence_transformers import (
    CROSS_ENCODER_SECTION,
    modules_files,
)
from trbert_deploy.modeling.checkpoints.sources import CONFIG_FILE
from trbert_deploy.modeling.checkpoints.tokenizer import allow_length, copy_tokenizer
from trbert_deploy.modeling.checkpoints.weight_files import SAFETENSORS_FILE, write_safetensors
from trbert_deploy.modeling.families.architectures import architecture_of
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.tasks.registry import task_kind
from trbert_deploy.tasks.text_ranking import ACTIVATION

CHECKPOINT_VERSION = 1


@dataclass
class Checkpoint:
    """A model with what belongs to it.

    Attributes:
        model: encoder, policies and head.
        tokenizer_dir: directory with the tokenizer's files.
        max_length: longest row of tokens that the model was made for, special tokens included.
        training: figures and options of the training that led here (JSON values).
        samples: a few texts of the task, or pairs of them, for benchmarks.
        hf_config: entries of config.json that do not follow from the model, kept as they came.
        recipe: the text of recipe.toml; None where nobody trained by one.
        lexicon: phrases with tags, where the model takes such.
    """

    model: ReducedModel
    tokenizer_dir: Path
    max_length: int
    training: dict[str, Any] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    hf_config: dict[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    lexicon: tuple[Entry, ...] = ()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint into a directory, beside what else is there, in one step.

    A file of the tokenizer, or a recipe, that this one has none of is removed: it would be taken
    for its own.
    """
    model = checkpoint.model
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.family.save(model.state_dict(), model.spec).items()
    }
    with staged_files(path, CHECKPOINT_FILES) as staging:
        write_safetensors(staging / SAFETENSORS_FILE, tensors, {"format": "pt"})
        write_json(staging / CONFIG_FILE, _hf_config(checkpoint))
        write_json(
            staging / REDUCTION_FILE,
            {
                "version": CHECKPOINT_VERSION,
                "max_length": checkpoint.max_length,
                "reduction": model.reduction.to_json(),
                "training": checkpoint.training,
            },
        )
        if checkpoint.recipe is not None:
            write_text(staging / RECIPE_FILE, checkpoint.recipe)
        if checkpoint.lexicon:
            write_entries(staging / LEXICON, checkpoint.lexicon)
        copy_tokenizer(checkpoint.tokenizer_dir, staging)
        allow_length(staging, checkpoint.max_length)
        spec = model.spec
        modules = modules_files(spec.answers, spec.hidden_size, checkpoint.max_length)
        for name, content in modules.items():
            (staging / name).parent.mkdir(exist_ok=True)
            write_json(staging / name, content)
        write_samples(staging / SAMPLES, checkpoint.samples)


def _told_answers(spec: EncoderSpec, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of config.json that say how outputs are answers.

    Args:
        spec: of the model.
        entries: of config.json as it was.
    """
    answers, known = spec.answers, task_kind(spec).entries
    told = {key: value for key, value in answers.items() if key in known}
    if "problem" in answers:
        told["problem_type"] = answers["problem"]
    if ACTIVATION in answers:  # as sentence-transformers 4.0 to 5.3 wrote it
        name = answers[ACTIVATION]
        told[CROSS_ENCODER_SECTION] = {
            **entries.get(CROSS_ENCODER_SECTION, {}),
            "activation_fn": f"{getattr(nn, name).__module__}.{name}",
        }
    return told


def _hf_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config.json that makes transformers load the checkpoint as the dense model."""
    spec, family = checkpoint.model.spec, checkpoint.model.family
    kept = {key: value for key, value in checkpoint.hf_config.items() if key != "torch_dtype"}
    return {
        "model_type": family.name,
        "attention_probs_dropout_prob": 0.0,
        **kept,
        "architectures": [f"{family.class_prefix}{architecture_of(spec.task)}"],
        "dtype": "float32",
        **family.hf_config(spec),
        "id2label": {str(index): label for index, label in enumerate(spec.labels)},
        "label2id": {label: index for index, label in enumerate(spec.labels)},
        **_told_answers(spec, kept),
    }


def load_checkpoint(path: Path, task: str | None = None) -> Checkpoint:
    """Read a checkpoint directory: one that ``save_checkpoint`` wrote, or another fine-tuned one,
    which has no cuts.

    Args:
        task: that it is asked for, as ``HfSource.read_as`` takes it.

    Raises:
        StorageError: no such directory.
        CheckpointError: no checkpoint, an unsupported family or head, missing or damaged files.
        ConfigError: a head for another task.
    """
    require_directory(path, "checkpoint", "trbert-deploy train")
    return read_whole(str(path), lambda where: _load(Path(where), task))


def _load(path: Path, task: str | None) -> Checkpoint:
    source = open_source(str(path)).read_as(task)
    if not (path / REDUCTION_FILE).is_file():
        return _load_dense(source, path)
    described = read_json(path / REDUCTION_FILE, CheckpointError)
    if described.get("version") != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path / REDUCTION_FILE} has version {described.get('version')}: this release reads "
            f"version {CHECKPOINT_VERSION}; upgrade trbert-deploy or train again"
        )
    try:
        reduction = ReductionConfig.from_json(described["reduction"])
        max_length = int(described["max_length"])
        training = dict(described.get("training", {}))
    except (KeyError, TypeError, ValueError) as problem:
        raise CheckpointError(f"{path / REDUCTION_FILE} is damaged: {problem}") from None
    model = ReducedModel(source.spec(), reduction)
    load_parameters(model, source.tensors(model.spec), str(path))
    samples = tuple(read_samples(path / SAMPLES, CheckpointError))
    return Checkpoint(
        model.eval(),
        path,
        max_length,
        training,
        samples,
        source.entries,
        _recipe_in(path),
        lexicon_in(path),
    )


def lexicon_in(directory: Path) -> tuple[Entry, ...]:
    """The lexicon of a checkpoint; none where it has none.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = directory / LEXICON
    return tuple(read_entries(path, CheckpointError)) if path.is_file() else ()


def _recipe_in(directory: Path) -> str | None:
    path = directory / RECIPE_FILE
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{path} cannot be read: {problem}") from None


def _load_dense(source: HfSource, path: Path) -> Checkpoint:
    """A fine-tuned checkpoint that drops nothing."""
    source.require_answers()
    model = load_with_head(source, ReductionConfig())
    longest = min(source.max_length or math.inf, model.spec.max_positions)
    return Checkpoint(model, path, int(longest), hf_config=source.entries)
