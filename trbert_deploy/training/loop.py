"""The loop that every trained stage shares: steps, figures, saving and resuming."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from transformers import get_linear_schedule_with_warmup

from trbert_deploy.config import ReductionConfig
from trbert_deploy.files import write_text
from trbert_deploy.modeling.checkpoints.weight_files import write_safetensors
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.progress import Progress
from trbert_deploy.training import processes
from trbert_deploy.training.batches import load_batches, plan_batches
from trbert_deploy.training.constraint import FlopsConstraint
from trbert_deploy.training.contexts import autocast
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.gradients import set_gradients
from trbert_deploy.training.recipe import STAGES, USUAL_STAGES, Recipe
from trbert_deploy.training.stages.stage import Stage, freeze_all_but

WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 1.0
RESUME_FILE = "resume.safetensors"
BEST_FILE = "best.safetensors"
FIGURES_FILE = "figures.jsonl"
#: Runs with seeds of their own stand so far apart.
_SEEDS_APART = len(USUAL_STAGES)


@dataclass(frozen=True)
class StageSettings:
    """How a stage is trained.

    Attributes:
        name: one of ``recipe.STAGES``.
        directory: receives figures, TensorBoard events and the state for resuming.
        plan: row indices of every batch, in order.
        warmup_share: share of the steps over which the learning rate rises.
        seed: of dropout and sampling, together with stage and step.
        save_seconds: seconds between two saves.
        validations: times that the stage is validated, the last time at its end.
        device: where the model is.
    """

    name: str
    directory: Path
    plan: Sequence[list[int]]
    warmup_share: float
    seed: int
    save_seconds: float
    validations: int
    device: torch.device

    @classmethod
    def planned(
        cls,
        name: str,
        recipe: Recipe,
        rows: Sequence[TrainingRow],
        directory: Path,
        device: torch.device,
    ) -> StageSettings:
        """The settings that a recipe gives a stage on training rows."""
        return cls(
            name=name,
            directory=directory,
            plan=plan_batches(
                [len(row) for row in rows],
                recipe.batch_tokens,
                getattr(recipe, name).epochs,
                seed=recipe.seed * _SEEDS_APART + STAGES.index(name),
            ),
            warmup_share=recipe.warmup_share,
            seed=recipe.seed,
            save_seconds=recipe.save_seconds,
            validations=recipe.validations_of(name),
            device=device,
        )


def train_stage(
    settings: StageSettings,
    model: ReducedModel,
    stage: Stage,
    rows: Sequence[TrainingRow],
    validate: Callable[[float], float],
    progress: Progress,
) -> None:
    """Train ``model`` in place, from where an interrupted run of the stage left off.

    Each step draws its random numbers from (seed, stage, step) alone, so that a run that was
    interrupted ends where an uninterrupted one does. The stage ends with the weights and rules
    that were validated best.

    Several processes divide each batch, come to the loss and the gradient that one would come to
    within rounding, and hold the same weights after every step; the main one writes the files.
    Where dropout or paths are sampled, each process samples for its own rows: there a run equals
    one with another number of processes in its statistics alone.

    Args:
        validate: share of the stage that is done -> how good the model is; the highest is best,
            the later of two equals. It may change the model's rules.
    """
    settings.directory.mkdir(parents=True, exist_ok=True)
    freeze_all_but(model, stage.groups)
    model.train(stage.dropout)
    optimizer = torch.optim.AdamW(
        [dict(group) for group in stage.groups], weight_decay=WEIGHT_DECAY, fused=True
    )
    total = len(settings.plan)
    schedule = get_linear_schedule_with_warmup(
        optimizer, round(settings.warmup_share * total), total
    )
    state = _State(model, optimizer, stage.constraint)
    first = state.resume(settings.directory / RESUME_FILE)
    for group, peak, factor in zip(
        optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = peak * factor(first)
    schedule.last_epoch = first
    steps = settings.validations
    validated = {math.ceil(total * number / steps) for number in range(1, steps + 1)}
    saved = time.monotonic()
    batches = load_batches(rows, settings.plan[first:], settings.device, shared=True)
    best = settings.directory / BEST_FILE
    if stage.refines and first == 0:
        score = validate(0.0)
        if processes.is_main():
            _keep_best(best, model, score)
    progress(settings.name, first, total)
    figures = _Figures(settings, first) if processes.is_main() else None
    with figures or nullcontext():
        for number, batch in enumerate(batches, start=first):
            seed = hash((settings.seed, STAGES.index(settings.name), number))
            torch.manual_seed((seed + processes.index()) % 2**63)
            with autocast(settings.device):
                step = stage.compute(batch, number / total)
            set_gradients(optimizer, step.loss, step.yielding)
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            values = {"loss": step.loss.item(), **step.figures}
            if number + 1 in validated:
                values["validation"] = validate((number + 1) / total)
            if figures is None:
                continue
            if "validation" in values:
                _keep_best(best, model, values["validation"])
            figures.write(number, values)
            shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            progress(f"{settings.name}  {shown}", number + 1, total)
            if time.monotonic() - saved > settings.save_seconds and number + 1 < total:
                figures.sync()  # what is saved goes on behind them
                state.save(settings.directory / RESUME_FILE, number + 1)
                saved = time.monotonic()
    processes.wait()  # until the best weights are written
    load_weights(best, model)
    model.requires_grad_(True)


class _Figures:
    """Writes a stage's figures as JSON lines and TensorBoard events."""

    def __init__(self, settings: StageSettings, first: int) -> None:
        self._stage = settings.name
        path = settings.directory / FIGURES_FILE
        # What an interrupted run wrote behind its last save comes again.
        lines = path.read_text(encoding="utf-8").splitlines(True)[:first] if path.exists() else []
        write_text(path, "".join(lines))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(settings.directory.parent, purge_step=first or None)

    def write(self, step: int, values: dict[str, float]) -> None:
        rounded = {name: round(value, 6) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **rounded}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{self._stage}/{name}", value, step)

    def sync(self) -> None:
        """Have the disk keep what was written."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> _Figures:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()


@dataclass(frozen=True)
class _State:
    """All that a stage needs to go on."""

    model: ReducedModel
    optimizer: torch.optim.Optimizer
    constraint: FlopsConstraint | None

    def save(self, path: Path, step: int) -> None:
        """Save what ``resume`` needs, whole or not at all."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for parameter, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{parameter}.{key}": value for key, value in state.items()}
        if self.constraint is not None:
            held = self.constraint.state_dict()
            tensors |= {f"constraint.{name}": value for name, value in held.items()}
        _write_weights(path, self.model, tensors, {"step": str(step)})

    def resume(self, path: Path) -> int:
        """Load what ``save`` wrote, if anything; the step to go on with."""
        if not path.exists():
            return 0
        parts = load_weights(path, self.model)
        if self.constraint is not None:
            self.constraint.load_state_dict(parts["constraint"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            parameter, _, key = name.partition(".")
            state.setdefault(int(parameter), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        with safe_open(path, "pt") as file:
            return int(file.metadata()["step"])


def _keep_best(path: Path, model: ReducedModel, score: float) -> None:
    """Write the model's weights and rules, unless better ones are there."""
    if path.exists():
        with safe_open(path, "pt") as file:
            if float(file.metadata()["score"]) > score:
                return
    save_weights(path, model, score=repr(score))


def save_weights(path: Path, model: ReducedModel, **metadata: str) -> None:
    """Write a model's weights and rules, for ``load_weights``."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    _write_weights(path, model, tensors, metadata)


def _write_weights(
    path: Path, model: ReducedModel, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write tensors, and the model's rules beside them."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    rules = json.dumps(model.reduction.to_json())
    write_safetensors(path, tensors, {**metadata, "reduction": rules})


def load_weights(path: Path, model: ReducedModel) -> dict[str, dict[str, Tensor]]:
    """Load the model's weights and rules; all tensors of the file by their first name."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(path).items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    with safe_open(path, "pt") as file:
        rules = json.loads(file.metadata()["reduction"])
    model.load_state_dict(parts["model"])
    model.set_reduction(ReductionConfig.from_json(rules))
    return parts
