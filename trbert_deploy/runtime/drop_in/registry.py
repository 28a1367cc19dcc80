"""The pipelines of transformers that a bundle can stand in for, by name."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.errors import ConfigError
from trbert_deploy.runtime.drop_in.drop_in import DropIn
from trbert_deploy.runtime.drop_in.fill_mask import FillMaskDropIn
from trbert_deploy.runtime.drop_in.question_answering import QuestionAnsweringDropIn
from trbert_deploy.runtime.drop_in.text_classification import TextClassificationDropIn
from trbert_deploy.runtime.drop_in.token_classification import TokenClassificationDropIn
from trbert_deploy.runtime.loading import load
from trbert_deploy.tasks.registry import TASKS

#: Name -> what is called as the pipeline of that name. One line for each.
DROP_INS: dict[str, type[DropIn]] = {
    "text-classification": TextClassificationDropIn,
    "sentiment-analysis": TextClassificationDropIn,
    "token-classification": TokenClassificationDropIn,
    "ner": TokenClassificationDropIn,
    "question-answering": QuestionAnsweringDropIn,
    "fill-mask": FillMaskDropIn,
}


#: Pipelines that no bundle can stand in for -> what can be called instead.
OTHERS = {
    "feature-extraction": "it gives states of all tokens, and those that are dropped have none; "
    "for embeddings of texts call trbert_deploy.load(BUNDLE).encode(texts)"
}


def pipeline(task: str, model: str | Path | Bundle = "bundle", **options: Any) -> DropIn:
    """Open a bundle as the transformers pipeline of a task.

    Args:
        task: name of the pipeline, a key of ``DROP_INS``.
        model: the bundle's directory, or an opened one.
        options: what the pipeline takes with a call, for all calls (``DropIn.options_type``), and
            what ``load`` takes.

    Raises:
        ConfigError: an unknown task, one that no bundle answers, a bundle for another one, or an
            option that is unknown or out of range.
        TrbertError: as ``load``.
    """
    if task in OTHERS:
        raise ConfigError(f"{task} is no pipeline of a bundle: {OTHERS[task]}")
    if task not in DROP_INS:
        raise ConfigError(f"unknown pipeline {task!r}: expected one of {', '.join(DROP_INS)}")
    drop_in = DROP_INS[task]
    own = {option.name for option in fields(drop_in.options_type)}
    answers = {name for kind in TASKS.values() for name in kind.options}  # a call has its own
    of_load = set(list(signature(load).parameters)[1:]) - own - answers
    for name in options:
        if name not in own | of_load:
            raise ConfigError(
                f"unknown option {name}: expected one of {', '.join(sorted(own | of_load))}"
            )
    loaded = load(model, **{name: options[name] for name in options.keys() & of_load})
    return drop_in(loaded, **{name: options[name] for name in options.keys() & own})
