"""Training runs of tiny models: their data, their options, and what is compared of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from commands_in_tests import write
from conftest import make_texts, tiny_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertModel

from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.recipe import (
    HardRecipe,
    JointRecipe,
    PolicyRecipe,
    Recipe,
    TeacherRecipe,
)


def make_workplace(path: Path, tokenizer_dir: Path, **changes: object) -> Path:
    """Put an encoder, an already fine-tuned model, and data into a directory."""
    path.mkdir(exist_ok=True)
    for name, count, seed in (("train", 160, 0), ("validation", 32, 1)):
        write(path / f"{name}.jsonl", make_texts(count, seed))
    model = tiny_model("none", **changes)
    save_checkpoint(Checkpoint(model, tokenizer_dir, 64), path / "fine-tuned")
    reference = AutoModelForSequenceClassification.from_pretrained(path / "fine-tuned")
    BertModel(reference.config).save_pretrained(path / "encoder")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / "encoder" / name).write_bytes((tokenizer_dir / name).read_bytes())
    return path


def options_for(workplace: Path) -> TrainOptions:
    """All stages on the data of ``make_workplace``, some seconds."""
    return TrainOptions(
        model=str(workplace / "encoder"),
        train=str(workplace / "train.jsonl"),
        validation=str(workplace / "validation.jsonl"),
        target_speedup=1.5,
        recipe=Recipe(
            averaged_runs=1,
            validations=2,
            batch_tokens=256,
            teacher=TeacherRecipe(epochs=6.0, learning_rate=3e-3),
            policy=PolicyRecipe(epochs=2.0, learning_rate=1e-2, rollouts=4),
            joint=JointRecipe(epochs=1.0, policy_learning_rate=1e-2, rollouts=2),
            hard=HardRecipe(epochs=1.0),
        ),
    )


def with_recipe(options: TrainOptions, **changes: Any) -> TrainOptions:
    """The same options with a changed recipe: ``seed=1``, or ``joint={"epochs": 2.0}``."""
    for name, value in changes.items():
        if isinstance(value, dict):
            changes[name] = replace(getattr(options.recipe, name), **value)
    return replace(options, recipe=replace(options.recipe, **changes))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


STAGES_OF = {"gates": ["teacher", "policy", "joint", "hard"]}
STAGES_OF["reinforce"] = STAGES_OF["gates"][:-1]


def by(estimator: str, options: TrainOptions) -> TrainOptions:
    """The same options, as one of the recipes has them."""
    if estimator == "gates":
        return options
    stages = ("teacher", "guide", "policy", "joint")
    options = replace(options, target_speedup=None)
    return with_recipe(options, estimator=estimator, stages=stages, fixed_penalty=True)


class Interrupted(Exception):
    pass
