"""The tasks by name."""

from __future__ import annotations

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import ConfigError
from trbert_deploy.tasks.task import Task
from trbert_deploy.tasks.text_classification import TextClassification

#: Name -> task. One line per task.
TASKS: dict[str, type[Task]] = {}


def register_task(task: type[Task]) -> None:
    """Let models answer a task."""
    TASKS[task.name] = task


for known in (TextClassification,):
    register_task(known)


def task_of(spec: EncoderSpec) -> Task:
    """The task of a model of this shape.

    Raises:
        ConfigError: it is unknown.
    """
    if spec.task not in TASKS:
        raise ConfigError(f"unknown task {spec.task!r}: expected one of {', '.join(TASKS)}")
    return TASKS[spec.task].of(spec)
