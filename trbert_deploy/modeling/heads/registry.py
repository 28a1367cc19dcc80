"""Which head answers which task."""

from __future__ import annotations

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.heads.head import Head
from trbert_deploy.modeling.heads.text_classification import TextClassificationHead

#: Task -> head. One line per head.
HEADS: dict[str, type[Head]] = {}


def register_head(head: type[Head]) -> None:
    """Let models of the head's task be built."""
    HEADS[head.task] = head


for known in (TextClassificationHead,):
    register_head(known)


def build_head(spec: EncoderSpec) -> Head:
    """The head of a model of this shape, newly initialized.

    Raises:
        ConfigError: no head answers the task.
    """
    if spec.task not in HEADS:
        raise ConfigError(f"unknown task {spec.task!r}: expected one of {', '.join(HEADS)}")
    return HEADS[spec.task].build(spec)
