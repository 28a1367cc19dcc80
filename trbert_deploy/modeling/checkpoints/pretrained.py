"""Starts a model from any Hugging Face checkpoint directory or hub name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.errors import DataError
from trbert_deploy.modeling.checkpoints.checkpoint_files import read_whole
from trbert_deploy.modeling.checkpoints.hf_source import HfSource, open_source
from trbert_deploy.modeling.checkpoints.parameters import load_parameters
from trbert_deploy.modeling.checkpoints.sentence_transformers import CROSS_ENCODER_ENTRIES
from trbert_deploy.modeling.families.family import OWN
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.tasks.registry import task_named, task_of
from trbert_deploy.tasks.task import NewHead, Task
from trbert_deploy.tasks.text_classification import TextClassification

#: Entries of config.json by which an earlier head's logits were answers.
_OF_ANOTHER_HEAD = ("problem_type", *CROSS_ENCODER_ENTRIES)


@dataclass(frozen=True)
class Pretrained:
    """A model to train further.

    Attributes:
        model: its policies are new; its head too unless ``fine_tuned``.
        fine_tuned: the source already has a head for the labels.
        hf_config: the source's config.json.
        note: what a person should know of the head, if anything.
        max_length: the longest row that it says it takes; None where only positions limit it.
    """

    model: ReducedModel
    fine_tuned: bool
    hf_config: dict[str, Any]
    note: str | None = None
    max_length: int | None = None


def task_for(where: str, name: str | None) -> type[Task]:
    """The task that a model's own head answers, or that a new one is for.

    Args:
        where: checkpoint directory or hub name.
        name: the task that is wanted; None to take the model's own, or the default for a new head.

    Raises:
        CheckpointError: not loadable, or an unsupported family.
        ConfigError: an unknown task, or the model has a head for another one.
    """
    source = read_whole(where, open_source)
    if name is None:  # of an encoder with embeddings alone, labels may make a classifier
        return TextClassification if source.takes_new_head else task_named(source.task)
    wanted = task_named(name)
    source.read_as(name)
    return wanted


def load_pretrained(
    where: str,
    head: NewHead | None,
    reduction: ReductionConfig | None,
    task: str | None = None,
) -> Pretrained:
    """Load an encoder, with its head if it has one that is computed here.

    Args:
        where: checkpoint directory or hub name.
        head: for the training data, whose labels one that is there must know; None to take the
            one that is there.
        reduction: the cuts, or None for the default places.
        task: that its own head is asked for, as ``HfSource.read_as`` takes it; None for that of
            ``head``, or its own.

    Raises:
        CheckpointError: not loadable, an unsupported family, or a head that we do not compute.
        DataError: the source is fine-tuned for other labels, or there are none for a new head.
        ConfigError: a cut out of range, or a head for another task.
    """
    return read_whole(where, lambda settled: _load(settled, head, reduction, task))


def _load(
    where: str, head: NewHead | None, reduction: ReductionConfig | None, task: str | None
) -> Pretrained:
    given = open_source(where)
    source = given.read_as(task if task is not None or head is None else head.task)
    if head is None and not source.answers_anything:
        takes = given.answers_anything and given.task != source.task
        advice = f"; --task {given.task} takes the one it has" if takes else ""
        raise DataError(
            f"the texts have no labels, and {where} has {source.told_head}: expected labelled "
            f"texts, or a fine-tuned model, whose answers can be learned{advice}"
        )
    if head is not None and source.is_bare:
        return _with_new_head(source, head, reduction)
    source.require_answers()
    if head is not None:
        answering = task_of(source.spec())
        answering.require_names(head.found, where)
        if answering.leaves_open(head):
            note = f"{where} has {source.told_head}: it is trained for {head.told}"
            model = load_with_head(source, reduction, head)
            return Pretrained(model, False, source.entries, note, source.max_length)
    model = load_with_head(source, reduction)
    return Pretrained(model, True, source.entries, max_length=source.max_length)


def load_with_head(
    source: HfSource, reduction: ReductionConfig | None, head: NewHead | None = None
) -> ReducedModel:
    """The model of a source whose answers are computed here, with new policies.

    Args:
        head: what is wanted of its own head, where that leaves something open.

    Raises:
        CheckpointError, ConfigError: as ``load_pretrained``.
    """
    model = _new_model(source.spec(head), reduction)
    load_parameters(model, source.tensors(model.spec), source.where, fresh=OWN)
    return model.eval()


def _with_new_head(
    source: HfSource, head: NewHead, reduction: ReductionConfig | None
) -> Pretrained:
    """The encoder of a source without a head that is computed here."""
    model = _new_model(source.spec(head), reduction)
    tensors = _without_head(source.tensors(model.spec), source, model)
    load_parameters(model, tensors, source.where, fresh=(*OWN, "head."))
    entries = {key: each for key, each in source.entries.items() if key not in _OF_ANOTHER_HEAD}
    note = f"{source.where} has {source.told_head}: a new one is trained for {head.told}"
    return Pretrained(model.eval(), False, entries, note)


def _new_model(spec: EncoderSpec, reduction: ReductionConfig | None) -> ReducedModel:
    default = ReductionConfig.default_for(spec)
    return ReducedModel(spec, default if reduction is None else reduction)


def _without_head(
    tensors: dict[str, Tensor], source: HfSource, model: ReducedModel
) -> dict[str, Tensor]:
    """Without a head that was made for other answers; an encoder's own pooler stays."""
    modules = source.family.modules(model.spec)
    kept = {ours for ours, theirs in modules.items() if theirs.startswith(source.family.prefix)}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("head.") or name.rpartition(".")[0] in kept
    }
