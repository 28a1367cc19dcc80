"""How each row of the quality tables comes to its student.

All begin with one teacher. Ours runs the product's stages; every other row but ``tr-bert`` ends
with the same hard stage, in which it learns from the teacher's answers on whole texts.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from chunks import ChunkStudent, Pooling
from pooled import PooledStudent
from runs import Run
from scores import score
from setting import locked, reduction_at
from students import (
    Student,
    answer,
    by_attention,
    by_chance,
    by_policy,
    first_tokens,
    head_and_tail,
    lengths_of,
    thinner,
)

from trbert_deploy import console
from trbert_deploy.bench.baselines import count_for, with_ratio
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.training.aim import Aim
from trbert_deploy.training.batches import PackedBatch
from trbert_deploy.training.contexts import autocast
from trbert_deploy.training.stages.stage import Stage, Step, make_stage
from trbert_deploy.training.warm_start import load_warm_start

#: Row -> what it is. Thin students and chunks save what they save; the others, --target-speedup.
ROWS = {
    "teacher": "the dense model on whole texts, as it is",
    "ours": "this toolkit's stages: policy, joint, hard",
    "tr-bert": "the published stages: policy and joint by REINFORCE",
    "truncate": "the text's first tokens",
    "head-tail": "a quarter of the tokens from the text's head, the others from its tail",
    "random": "random tokens, one ratio for all texts and cuts",
    "attention": "the tokens that receive most attention (LTP), one ratio for all texts and cuts",
    "fixed-ratio": "our policies before their hard stage, one ratio for all texts and cuts",
    "pooled": "means of every few neighbours (LTC) from the layer behind our first cut on",
    "chunks-mean": "chunks of 512 tokens, each read alone, the mean of their states",
    "chunks-max": "the same, the largest values of their states",
    "student-3": "three of the teacher's layers",
    "student-2": "two of the teacher's layers",
}

#: Rows in which not every token of a text has a state to answer by.
PARTS = ("truncate", "head-tail", "chunks-mean", "chunks-max", "pooled")
#: Rows whose threshold can be moved without training.
THRESHOLDED = ("ours", "tr-bert")


def train_row(run: Run) -> Student:
    """The student of a row, trained as far as it is not yet.

    Raises:
        ConfigError: not every token has a state in the row, and the task answers all of them.
    """
    row, task = run.row, run.setting.task
    if row in PARTS and task.answers_tokens:
        raise ConfigError(
            f"row {row} has no state for every token, and {task.name} answers each of them: give "
            "other rows"
        )
    if row == "ours":
        return _with_policies(run, "policy", "joint", "hard")
    if row == "tr-bert":
        return _with_policies(run, "policy", "joint")
    if row == "fixed-ratio":
        return _with_fixed_ratio(run)
    cuts = run.options.recipe.cuts
    if row == "pooled":
        first = reduction_at(cuts, run.setting.spec).cuts[0].position
        model = run.setting.load_teacher(f"{max(1, math.ceil(first))}")
        _set_ratio(run, model)
        return _harden(run, PooledStudent(model))
    model = run.setting.load_teacher(cuts)
    if row in ("random", "attention"):
        _set_ratio(run, model)
        seed = run.options.recipe.seed
        choose = by_attention(model) if row == "attention" else by_chance(model, seed)
        return _harden(run, Student(model, choose=choose), fitted=False)
    model.set_reduction(ReductionConfig())
    if row == "teacher":
        return Student(model)
    if row.startswith("chunks"):
        pooling: Pooling = "max" if row == "chunks-max" else "mean"
        return _harden(run, ChunkStudent(model, pooling=pooling))
    if row.startswith("student"):
        return _harden(run, Student(thinner(model, int(row[-1]))))
    count = count_for(model.spec, lengths_of(run.setting.validation_rows), _speedup(run))
    view = first_tokens(count) if row == "truncate" else head_and_tail(count)
    return _harden(run, Student(model, view))


def _with_policies(run: Run, *stages: str) -> Student:
    """The product's stages after the teacher's."""
    setting, options = run.setting, run.options
    model = setting.load_teacher(options.recipe.cuts)
    validator = setting.validator(setting.validation_rows, options.recipe.batch_tokens)
    aim = Aim(options, validator, teacher_score=0.0, note=console.notes.print)
    for name in stages:
        if run.load(name, model):
            continue
        if name == "policy":
            run.guide().project(model)
        if name == "policy" and options.warm_start is not None:
            model.take_over(load_warm_start(options.warm_start, model.spec, options.recipe.cuts))
            continue
        begin = partial(_begin, name, model, run, aim)
        run.train(name, Student(model), begin, partial(aim.judge, name, model))
    return Student(model, choose=by_policy(model))


def _begin(name: str, model: ReducedModel, run: Run, aim: Aim) -> Stage:
    return make_stage(name, model, run.options, run.guide(), aim.prepare(name, model))


def training_seconds(run: Run) -> dict[str, float]:
    """Training time of each stage that a row builds on."""
    lent = _ours(run).seconds() if run.row == "fixed-ratio" else {}
    lent.pop("hard", None)
    return lent | run.seconds()


def _ours(run: Run) -> Run:
    """The run that lends its policies."""
    return replace(run, row="ours")


def _with_fixed_ratio(run: Run) -> Student:
    """Our policies; but every text keeps the same share, whatever it says."""
    ours = _ours(run)
    with locked(ours.directory):
        ours.claim()
        model = _with_policies(ours, "policy", "joint").model
    _set_ratio(run, model)
    return _harden(run, Student(model, choose=by_policy(model)))


def _set_ratio(run: Run, model: ReducedModel) -> None:
    lengths = lengths_of(run.setting.validation_rows)
    model.set_reduction(with_ratio(model.spec, model.reduction, lengths, _speedup(run)))


def _harden(run: Run, student: Student, fitted: bool = True) -> Student:
    """The hard stage: encoder and head learn the teacher's answers from what the student sees.

    Args:
        fitted: dropped tokens that take part in answers have their maps already.
    """
    setting, recipe, model = run.setting, run.options.recipe, student.model
    if run.load("hard", model):
        return student
    guide = run.guide()
    if not fitted:
        guide.project(model)

    def compute(batch: PackedBatch, done: float) -> Step:
        outputs, _ = student.forward(batch, training=True)
        wanted = guide.outputs_of(batch)
        loss = model.head.loss(outputs, batch.targets, wanted).mean()
        targets = model.head.targets_or_answers(batch.targets, wanted)
        right = model.head.correct(outputs, targets).mean()
        return Step(loss, {"right": right.item()})

    def validate(done: float) -> float:
        rows = setting.validation_rows
        with autocast(setting.device):
            outputs = answer(student, rows, recipe.batch_tokens, setting.device).outputs
        return score(setting, rows, outputs).value

    parts = (model.encoder, model.head, model.projections)
    body = [each for part in parts for each in part.parameters()]
    stage = Stage(compute, [{"params": body, "lr": recipe.hard.learning_rate}])
    run.train("hard", student, lambda: stage, lambda constraint: validate)
    return student


def _speedup(run: Run) -> float:
    assert run.options.wanted_speedup is not None  # compare.py always gives one
    return run.options.wanted_speedup
