"""What transformers calls a model with a head: behind a family's prefix, in ``architectures``."""

from __future__ import annotations

from trbert_deploy.tasks.text_classification import TextClassification

#: Name -> the task of its head. One line per task.
HEAD_TASKS = {"ForSequenceClassification": TextClassification.name}
#: Names without a head that answers anything.
BARE = ("", "Model", "ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction", "LMHeadModel")


def architecture_of(task: str) -> str:
    """What a model with the head of ``task`` is called."""
    return next(name for name, answered in HEAD_TASKS.items() if answered == task)
