"""A stage trained several times over, and the mean of the weights that it came to.

Runs that begin at the same weights and see the texts in other orders end near each other, and the
mean of their weights is better than they are: what each owes to its own order cancels out
("Model soups", Wortsman et al. 2022, the uniform soup). At inference it costs nothing.

A run of the hard stage goes on from the joint stage's run of the same number, so that whole runs
are averaged; the joint stage's mean is what a training without a hard stage ends with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from trbert_deploy.modeling.model import ReducedClassifier
from trbert_deploy.progress import Progress
from trbert_deploy.training import processes
from trbert_deploy.training.data import LabelledRow
from trbert_deploy.training.loop import (
    BEST_FILE,
    RESUME_FILE,
    StageSettings,
    load_weights,
    save_weights,
    train_stage,
)
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.stages import Stage

RESULT_FILE = "result.safetensors"
#: A stage as it begins, with how it is validated: share of it that is done -> score.
Beginning = tuple[Stage, Callable[[float], float]]


def planned_runs(
    stage: str,
    options: TrainOptions,
    rows: Sequence[LabelledRow],
    directory: Path,
    device: torch.device,
) -> list[StageSettings]:
    """The runs of a stage: one in its directory, or several, each with a seed and a directory."""
    times = options.averaged_runs_of(stage)
    if times == 1:
        return [StageSettings.planned(stage, options, rows, directory, device)]
    return [
        StageSettings.planned(
            stage,
            replace(options, seed=options.seed + number),
            rows,
            directory / f"run-{number + 1}",
            device,
        )
        for number in range(times)
    ]


def train_averaged(
    settings: Sequence[StageSettings],
    model: ReducedClassifier,
    begin: Callable[[], Beginning],
    rows: Sequence[LabelledRow],
    progress: Progress,
) -> None:
    """Train ``model`` in place, once by each of ``settings``, to the mean of what comes of it.

    Every run starts from the weights and rules that the model has now, or goes on from the joint
    stage's run of the same number. The mean is validated at the end, which sets its rules. An
    interrupted run goes on where it was, finished ones stay.

    Args:
        settings: of one run each; a single one is ``train_stage``, with nothing to average.
        begin: the stage on ``model``, anew for each run, and its validation.
    """
    if len(settings) == 1:
        stage, validate = begin()
        train_stage(settings[0], model, stage, rows, validate, progress)
        return
    start, rules = _weights(model), model.reduction
    results = [each.directory / RESULT_FILE for each in settings]
    for number, (each, result) in enumerate(zip(settings, results, strict=True), start=1):
        if result.exists():
            continue
        model.load_state_dict(start)
        model.set_reduction(rules)
        earlier = _joint_result(each)
        if earlier is not None:
            load_weights(earlier, model)
        stage, validate = begin()
        named = _prefixed(progress, f"{number}/{len(settings)} ")
        train_stage(each, model, stage, rows, validate, named)
        if processes.is_main():
            save_weights(result, model)
        processes.wait()  # all read it
    model.load_state_dict(mean_of(results))
    model.set_reduction(rules)
    _, validate = begin()
    validate(1.0)


def clear_progress(directory: Path, *, keep_results: bool = False) -> None:
    """Remove what a stage needed to go on with, once its checkpoint is in ``directory``.

    Behind the hard stage, what the joint stage's runs left for it goes too.

    Args:
        keep_results: of its runs, from which those of the hard stage go on.
    """
    if directory.name == "hard":
        clear_progress(directory.with_name("joint"))
    names = (RESUME_FILE, BEST_FILE) if keep_results else (RESUME_FILE, BEST_FILE, RESULT_FILE)
    for name in names:
        for path in (directory / name, *directory.glob(f"run-*/{name}")):
            path.unlink(missing_ok=True)


def _joint_result(settings: StageSettings) -> Path | None:
    """What a run of the hard stage goes on from, if the joint stage's runs are still there."""
    directory = settings.directory
    path = directory.parent.with_name("joint") / directory.name / RESULT_FILE
    return path if settings.name == "hard" and path.exists() else None


def mean_of(files: Iterable[Path]) -> dict[str, Tensor]:
    """The mean of the model's weights over files of ``save_weights``."""
    states = [load_file(file) for file in files]
    return {
        name.removeprefix("model."): torch.stack([state[name] for state in states]).mean(0)
        for name in states[0]
    }


def _weights(model: ReducedClassifier) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _prefixed(progress: Progress, prefix: str) -> Progress:
    return lambda step, done, total: progress(f"{prefix}{step}", done, total)
