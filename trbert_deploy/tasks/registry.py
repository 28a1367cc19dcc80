"""The tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import ConfigError
from trbert_deploy.tasks.feature_extraction import FeatureExtraction
from trbert_deploy.tasks.fill_mask import FillMask
from trbert_deploy.tasks.multi_label import MultiLabelClassification
from trbert_deploy.tasks.multiple_choice import MultipleChoice
from trbert_deploy.tasks.pairs import PairRules
from trbert_deploy.tasks.question_answering import QuestionAnswering
from trbert_deploy.tasks.regression import Regression
from trbert_deploy.tasks.task import Task
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.tasks.text_ranking import TextRanking
from trbert_deploy.tasks.token_classification import TokenClassification

#: Name and problem -> task. One line per task.
TASKS: dict[tuple[str, str], type[Task]] = {}


def register_task(task: type[Task]) -> None:
    """Let models answer a task."""
    TASKS[task.name, task.problem] = task


for known in (
    TextClassification,
    MultiLabelClassification,
    Regression,
    TextRanking,
    FeatureExtraction,
    TokenClassification,
    QuestionAnswering,
    FillMask,
    MultipleChoice,
):
    register_task(known)


def task_named(name: str) -> type[Task]:
    """The task of a name, before anything is known of the kind of its answers.

    Raises:
        ConfigError: it is unknown.
    """
    known = {task: kind for (task, problem), kind in TASKS.items() if not problem}
    if name not in known:
        raise ConfigError(f"unknown task {name!r}: expected one of {', '.join(known)}")
    return known[name]


def task_kind(spec: EncoderSpec) -> type[Task]:
    """The kind of task of a model of this shape.

    Raises:
        ConfigError: it is unknown.
    """
    task = TASKS.get((spec.task, spec.problem))
    if task is None:
        told = [" as ".join(filter(None, key)) for key in TASKS]
        raise ConfigError(
            f"unknown task {' as '.join(filter(None, (spec.task, spec.problem)))!r}: expected one "
            f"of {', '.join(told)}"
        )
    return task


def task_of(spec: EncoderSpec) -> Task:
    """The task of a model of this shape.

    Raises:
        ConfigError: it is unknown, or does not take what the model says of its answers.
    """
    task = task_kind(spec).of(spec)
    task.pair_rules = PairRules.of(spec.answers)
    return task


def answering(spec: EncoderSpec, entries: Mapping[str, Any]) -> EncoderSpec:
    """The shape of a model that answers as further entries of ``EncoderSpec.answers`` say.

    Raises:
        ConfigError: an entry that its task does not have, or a value that it does not take.
    """
    known = task_kind(spec).entries
    for name in entries:
        if name not in known:
            raise ConfigError(
                f"{name} is {entries[name]!r}, and the model is for {spec.task}, which has no "
                f"{name}: leave it out"
            )
    changed = replace(spec, answers={**spec.answers, **entries})
    task_of(changed)
    return changed
