"""Stages trained several times over, and the mean of the weights that they came to.

Runs that begin at the same weights and see the texts in other orders end near each other, and the
mean of their weights is better than they are: what each owes to its own order cancels out
("Model soups", Wortsman et al. 2022, the uniform soup). At inference it costs nothing.

By default the hard stage alone is averaged: its runs begin at the one joint stage. Where earlier
stages are, too (``averaged_from``), a run of a stage goes on from the same run of the stage before,
so that from there on the mean is that of as many trainings with seeds of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.progress import Progress
from trbert_deploy.training import processes
from trbert_deploy.training.constraint import FlopsConstraint
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.loop import (
    BEST_FILE,
    RESUME_FILE,
    StageSettings,
    load_weights,
    save_weights,
    train_stage,
)
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.recipe import STAGES
from trbert_deploy.training.stages.stage import Stage

RESULT_FILE = "result.safetensors"
#: What a stage is held to -> how it is validated: share of it that is done -> score.
Judge = Callable[[FlopsConstraint | None], Callable[[float], float]]


def planned_runs(
    stage: str,
    options: TrainOptions,
    rows: Sequence[TrainingRow],
    directory: Path,
    device: torch.device,
) -> list[StageSettings]:
    """The runs of a stage: one in its directory, or several, each with a seed and a directory."""
    times, recipe = options.averaged_runs_of(stage), options.recipe
    if times == 1:
        return [StageSettings.planned(stage, recipe, rows, directory, device)]
    return [
        StageSettings.planned(
            stage,
            replace(recipe, seed=recipe.seed + number),
            rows,
            directory / f"run-{number + 1}",
            device,
        )
        for number in range(times)
    ]


def train_averaged(
    settings: Sequence[StageSettings],
    model: ReducedModel,
    begin: Callable[[], Stage],
    judge: Judge,
    rows: Sequence[TrainingRow],
    progress: Progress,
) -> None:
    """Train ``model`` in place, once by each of ``settings``, to the mean of what comes of it.

    Every run starts from the weights and rules that the model has now, or goes on from the same
    run of the stage before. The mean is validated at the end, which sets its rules. An
    interrupted run goes on where it was, finished ones stay.

    Args:
        settings: of one run each; a single one is ``train_stage``, with nothing to average.
        begin: the stage on ``model``, made ready for it, anew for each run.
    """
    if len(settings) == 1:
        stage = begin()
        train_stage(settings[0], model, stage, rows, judge(stage.constraint), progress)
        return
    start, rules = _weights(model), model.reduction
    results = [each.directory / RESULT_FILE for each in settings]
    for number, (each, result) in enumerate(zip(settings, results, strict=True), start=1):
        if result.exists():
            continue
        model.load_state_dict(start)
        model.set_reduction(rules)
        earlier = _result_before(each)
        if earlier is not None:
            load_weights(earlier, model)
        stage = begin()
        named = _prefixed(progress, f"{number}/{len(settings)} ")
        train_stage(each, model, stage, rows, judge(stage.constraint), named)
        if processes.is_main():
            save_weights(result, model)
        processes.wait()  # all read it
    model.load_state_dict(mean_of(results))
    model.set_reduction(rules)
    judge(None)(1.0)


def clear_progress(directory: Path, *, keep_results: bool = False) -> None:
    """Remove what a stage needed to go on with, once its checkpoint is in ``directory``.

    Args:
        keep_results: of its runs, from which the next stage's go on.
    """
    names = [RESUME_FILE, BEST_FILE, *([] if keep_results else [RESULT_FILE])]
    for name in names:
        for path in (directory / name, *directory.glob(f"run-*/{name}")):
            path.unlink(missing_ok=True)


def _result_before(settings: StageSettings) -> Path | None:
    """What the same run of the stage before came to, if that was trained as often."""
    stages, run = settings.directory.parent.parent, settings.directory.name
    for stage in reversed(STAGES[: STAGES.index(settings.name)]):
        path = stages / stage / run / RESULT_FILE
        if path.exists():
            return path
    return None


def mean_of(files: Iterable[Path]) -> dict[str, Tensor]:
    """The mean of the model's weights over files of ``save_weights``."""
    states = [load_file(file) for file in files]
    return {
        name.removeprefix("model."): torch.stack([state[name] for state in states]).mean(0)
        for name in states[0]
    }


def _weights(model: ReducedModel) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _prefixed(progress: Progress, prefix: str) -> Progress:
    return lambda step, done, total: progress(f"{prefix}{step}", done, total)
