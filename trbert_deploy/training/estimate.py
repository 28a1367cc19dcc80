"""How long a run will take on this machine, told from a few steps of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy

import torch

from trbert_deploy.modeling.walk import dense_outputs
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.training.batches import PackedBatch, load_batches, plan_batches
from trbert_deploy.training.contexts import autocast, evaluating
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.gradients import set_gradients
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.prepare import Prepared
from trbert_deploy.training.recipe import EXITS
from trbert_deploy.training.stages.guide import answers, batch_saliency, make_guide
from trbert_deploy.training.stages.stage import Stage, freeze_all_but, make_stage
from trbert_deploy.training.validation import Validator

#: Tokens of a step that is timed on a CPU; steps of a run are larger, at about the same price per
#: token. On a GPU small steps cost what large ones do.
STEP_TOKENS = 1024
#: Steps of each stage: the first of them only warms up.
STEPS = 3


def estimate_seconds(
    options: TrainOptions,
    run: Prepared,
    texts: int,
    held_out: int,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """Seconds that each stage of a run will take here, validation included.

    Args:
        run: prepared for ``options``, with some of the texts; its model stays as it is.
        texts, held_out: how many the run will learn from, and be validated by.
    """
    recipe, device = options.recipe, run.device
    step_tokens = STEP_TOKENS if device.type == "cpu" else recipe.batch_tokens
    model = deepcopy(run.checkpoint.model).to(device)
    rows = _some(run.rows_of("policy"), step_tokens)
    plan = plan_batches([len(row) for row in rows], step_tokens)[:STEPS]
    batches = list(load_batches(rows, plan, device))
    stages = [name for name in recipe.stages if not (name == "teacher" and run.fine_tuned)]
    more = texts / len(run.training)
    tokens = {name: more * sum(map(len, run.rows_of(name))) for name in stages}
    looked_at = held_out * sum(map(len, run.validator.rows)) / len(run.validator.rows)

    def forward(batch: PackedBatch) -> None:
        with evaluating(model), autocast(device):
            dense_outputs(model, batch)

    looking = _seconds_per_token(forward, batches)
    guide = make_guide(model, rows, step_tokens, device, no_progress)
    validator = Validator(
        rows,
        run.validator.task,
        False,
        step_tokens,
        device,
        answers(model, rows, step_tokens, device, no_progress),
    )
    seconds: dict[str, float] = {}
    for done, name in enumerate(stages, start=1):
        if name == "guide":
            price = _seconds_per_token(lambda batch: batch_saliency(model, batch), batches)
            seconds[name] = price * tokens[name] + looking * looked_at
        else:
            if name == "hard" and options.wanted_speedup is not None:
                validator.calibrate(model, options.wanted_speedup)
            if name == EXITS:
                model.set_reduction(model.reduction.with_exits(ExitRule()))
            made = make_stage(name, model, options, None if name == "teacher" else guide)
            freeze_all_but(model, made.groups)
            model.train(made.dropout)
            price = _seconds_per_token(_step(made), batches)
            epochs = getattr(recipe, name).epochs
            looks = recipe.validations_of(name) * looked_at * looking
            seconds[name] = options.averaged_runs_of(name) * (price * tokens[name] * epochs + looks)
        progress("estimate", done, len(stages))
    return seconds


def _some(rows: Sequence[TrainingRow], step_tokens: int) -> list[TrainingRow]:
    """Rows of every kind, some steps of them."""
    wanted = STEPS * step_tokens
    mean = max(1, sum(map(len, rows)) // len(rows))
    return list(rows[:: max(1, len(rows) * mean // wanted)])


def _step(stage: Stage) -> Callable[[PackedBatch], None]:
    """A step of a stage up to its gradients."""
    optimizer = torch.optim.SGD([dict(group) for group in stage.groups])

    def run(batch: PackedBatch) -> None:
        with autocast(batch.targets.device):
            step = stage.compute(batch, 0.5)
        set_gradients(optimizer, step.loss, step.yielding)

    return run


def _seconds_per_token(
    run: Callable[[PackedBatch], object], batches: Sequence[PackedBatch]
) -> float:
    """Price of a token in ``run``, without the first batch, which warms up, if there are more."""
    timed = batches[1:] or batches
    run(batches[0])
    _finish_computing()
    start = time.perf_counter()
    for batch in timed:
        run(batch)
    _finish_computing()
    return (time.perf_counter() - start) / sum(len(batch.input_ids) for batch in timed)


def _finish_computing() -> None:
    """Wait for a GPU, which is only told what to compute."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
