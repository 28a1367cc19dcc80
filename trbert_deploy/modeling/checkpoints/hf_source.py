"""A Hugging Face checkpoint as it comes: what it is, and whether we compute its answers."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import CheckpointError, ConfigError, first_line
from trbert_deploy.files import read_json
from trbert_deploy.modeling.checkpoints.adapters import refuse_adapter
from trbert_deploy.modeling.checkpoints.names import mend_names
from trbert_deploy.modeling.checkpoints.sentence_transformers import (
    SentenceModules,
    is_sentence_transformers,
    read_cross_encoder_activation,
    read_cross_encoder_truncation,
    read_modules,
)
from trbert_deploy.modeling.checkpoints.sources import CONFIG_FILE
from trbert_deploy.modeling.checkpoints.tensors import read_tensors
from trbert_deploy.modeling.checkpoints.tokenizer import spelling_of_source
from trbert_deploy.modeling.families.architectures import ARCHITECTURES, BARE, PRETRAINED
from trbert_deploy.modeling.families.family import Family, require_tied
from trbert_deploy.modeling.families.registry import family_of
from trbert_deploy.tasks.activations import SIGMOID
from trbert_deploy.tasks.feature_extraction import FeatureExtraction
from trbert_deploy.tasks.multiple_choice import MultipleChoice
from trbert_deploy.tasks.pairs import TRUNCATION
from trbert_deploy.tasks.registry import TASKS, task_kind, task_of
from trbert_deploy.tasks.task import NewHead
from trbert_deploy.tasks.text_classification import (
    MULTI_LABEL,
    ONE_NUMBER,
    REGRESSION,
    SINGLE_LABEL,
    TextClassification,
)
from trbert_deploy.tasks.text_ranking import ACTIVATION, TextRanking

#: What makes logits of texts, one row for each.
CLASSIFIER = {"head.classifier.weight", "head.classifier.bias"}
SUPPORTED = (
    "supported are text classification (one label of two or more, several labels, regression), "
    "text ranking by one logit, token classification, question answering, masked words, multiple "
    "choice, and sentence embeddings"
)


@dataclass(frozen=True)
class HfSource:
    """A checkpoint of transformers.

    Attributes:
        where: directory or hub name, as it was given.
        model: the directory or hub name that holds the encoder.
        config: of transformers.
        entries: config.json as it is; what we do not know of it survives a round trip.
        family: what reads it.
        head: of its architecture, such as ``ForSequenceClassification``; empty for a bare encoder.
        modules: what a folder of sentence-transformers puts around it.
        by_difference: its two logits are read as one, the second less the first, of which a sigmoid
            makes the second label's probability.
    """

    where: str
    model: str
    config: Any
    entries: dict[str, Any]
    family: Family
    head: str
    modules: SentenceModules | None = None
    by_difference: bool = False

    def read_as(self, task: str | None) -> HfSource:
        """The same source, asked for the answers of a task; of its own where None.

        A classifier with two labels ranks texts, too, and what was pretrained is an encoder.

        Raises:
            ConfigError: it has a head for another one.
        """
        if task in (None, self.task) or self.is_bare:
            return self
        if task == TextRanking.name and self._has_two_classes:
            return replace(self, by_difference=True)
        if self.head in PRETRAINED:
            return replace(self, head="")
        raise ConfigError(
            f"{self.where} has a head for {self.task}: expected that task, or an encoder without a "
            f"head, which gets a new one for {task}"
        )

    @property
    def _has_two_classes(self) -> bool:
        """Whether one of two labels is right, by softmax."""
        kind = getattr(self.config, "problem_type", None)
        classifies = self.task == TextClassification.name and kind in (None, SINGLE_LABEL)
        return classifies and not self._problem and self.config.num_labels == 2

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the outputs; of one logit whatever the files call them."""
        if self.by_difference or self.task == MultipleChoice.name:
            return ONE_NUMBER
        return tuple(str(self.config.id2label[index]) for index in range(self.config.num_labels))

    @property
    def told_head(self) -> str:
        """What a person is told of the head."""
        return "no head that answers" if self.head in BARE else f"the head {self.head}"

    @property
    def is_bare(self) -> bool:
        """Whether there is no head that answers anything."""
        return self.head in BARE or self.head not in ARCHITECTURES.values()

    @property
    def takes_new_head(self) -> bool:
        """Whether it is an encoder for whatever a new head is trained for."""
        return self.is_bare or self.head in PRETRAINED

    @property
    def answers_anything(self) -> bool:
        """Whether it makes embeddings, or has a head that answers something."""
        return self.modules is not None or not self.is_bare

    @property
    def max_length(self) -> int | None:
        """The longest row that it says it takes; None where only positions limit it."""
        return None if self.modules is None else self.modules.max_length

    @property
    def task(self) -> str:
        """What it answers; one logit is a score, unless it is said to be a number.

        A new head's task by default, where there is none that answers.
        """
        if self.modules is not None:
            return FeatureExtraction.name
        if self.is_bare:
            return TextClassification.name
        if self.by_difference:
            return TextRanking.name
        task = next(task for task, name in ARCHITECTURES.items() if name == self.head)
        kind = getattr(self.config, "problem_type", None)
        one_score = self.config.num_labels == 1 and kind in (None, SINGLE_LABEL)
        return TextRanking.name if one_score and task == TextClassification.name else task

    @property
    def answers(self) -> dict[str, Any]:
        """How its outputs are answers, see ``EncoderSpec.answers``."""
        if self.modules is not None:
            return self.modules.answers
        problem = self._problem if self.task == TextClassification.name else ""
        entries = TASKS[self.task, problem].entries
        known = {key: self.entries[key] for key in entries if self.entries.get(key) is not None}
        if TRUNCATION in entries and Path(self.model).is_dir():
            truncation = known.get(TRUNCATION) or read_cross_encoder_truncation(Path(self.model))
            known |= {TRUNCATION: truncation} if truncation else {}
        if self.task == TextRanking.name:
            own = SIGMOID if self.by_difference else self._activation
            known[ACTIVATION] = own or SIGMOID
        return {"problem": problem, **known} if problem else known

    @property
    def _problem(self) -> str:
        """The kind of a text classifier's answers, see ``Task.problem``."""
        kind = getattr(self.config, "problem_type", None)
        if kind == REGRESSION:
            return REGRESSION
        several = kind == MULTI_LABEL or self._activation.endswith("Sigmoid")
        return MULTI_LABEL if several else ""

    @property
    def _activation(self) -> str:
        """What a CrossEncoder puts on its logits; empty where it says nothing."""
        local = Path(self.model)
        return (read_cross_encoder_activation(local) if local.is_dir() else None) or ""

    def spec(self, head: NewHead | None = None) -> EncoderSpec:
        """Our description of it.

        Args:
            head: a new one; its own where None.

        Raises:
            CheckpointError: a variant of the family that we do not compute.
        """
        task = self.task if head is None else head.task
        answers = self.answers if head is None else dict(head.answers)
        try:
            own = () if self.modules is not None else self.labels
            spec = self.family.spec(self.config, task, own if head is None else head.labels)
            require_tied(self.config, task)
            options = self.family.head_options.get(task, {})
            spec = replace(spec, answers=answers, head={**spec.head, **options})
            spec = task_kind(spec).settled(spec, lambda: spelling_of_source(self.model))
            return replace(spec, answers_tokens=task_of(spec).answers_every_token)
        except (CheckpointError, ConfigError) as problem:
            raise CheckpointError(f"{self.where}: {problem}") from None
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as problem:
            raise CheckpointError(
                f"{self.where}: {CONFIG_FILE} lacks an entry of {self.family.name}, or has one of "
                f"a wrong kind ({type(problem).__name__}: {first_line(problem)}); expected what "
                "transformers writes for this family"
            ) from None

    def tensors(self, spec: EncoderSpec) -> dict[str, Tensor]:
        """Its tensors under our names, float32.

        Raises:
            CheckpointError: the files are missing, damaged, or hold what we do not compute.
        """
        state = mend_names(read_tensors(self.model))
        try:
            tensors = self.family.load(state, spec)
        except CheckpointError as problem:
            raise CheckpointError(f"{self.where}: {problem}") from None
        if self.by_difference:
            for name in CLASSIFIER & tensors.keys():
                tensors[name] = tensors[name][1:] - tensors[name][:1]
        return tensors

    def require_answers(self) -> None:
        """Refuse a head that we do not compute, by name.

        Raises:
            CheckpointError: no head, another task's, or other answers than one label by softmax.
        """
        advice = f"{SUPPORTED}; or train a new head: trbert-deploy train --model {self.where}"
        if self.modules is not None:
            return
        if self.is_bare:
            raise CheckpointError(
                f"{self.where} has {self.told_head}: expected one that is computed here: {advice}"
            )
        kind = getattr(self.config, "problem_type", None)
        if kind not in (None, SINGLE_LABEL, MULTI_LABEL, REGRESSION):
            raise CheckpointError(f"{self.where} has problem_type {kind!r}: {SUPPORTED}")


def open_source(where: str) -> HfSource:
    """Open a checkpoint directory, a sentence-transformers folder, or a hub name.

    Raises:
        CheckpointError: none there, an adapter without its model, or an unsupported family.
    """
    path = Path(where)
    model, modules = where, None
    if path.is_dir():
        refuse_adapter(path, where)
        if is_sentence_transformers(path):
            modules = read_modules(path)
            model = str(path / modules.directory)
    config = load_hf_config(model, where)
    local = Path(model) / CONFIG_FILE
    entries = read_json(local, CheckpointError) if local.is_file() else config.to_dict()
    architectures = getattr(config, "architectures", None) or [""]
    family = family_of(config.model_type, where)
    head = str(architectures[0]).removeprefix(family.class_prefix)
    return HfSource(where, model, config, entries, family, head, modules)


def load_hf_config(model: str, where: str) -> Any:
    """The configuration of a directory or hub name; errors call it ``where``.

    Raises:
        CheckpointError: there is none, or its family is not supported.
    """
    local = Path(model).is_dir()
    if local and not (Path(model) / CONFIG_FILE).is_file():
        raise CheckpointError(f"{where} is not a checkpoint: it has no {CONFIG_FILE}")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the error below says it all
    try:
        return AutoConfig.from_pretrained(model, local_files_only=local)
    except StrictDataclassError as problem:  # an entry's kind, told on a second line
        raise CheckpointError(
            f"{where} cannot be loaded: {' '.join(str(problem).split())}"
        ) from None
    except (OSError, ValueError, KeyError) as problem:
        if local:
            described = read_json(Path(model) / CONFIG_FILE, CheckpointError)
            family_of(described.get("model_type"), where)
        what = where if local else f"{where} is no directory here, and from the hub it"
        raise CheckpointError(f"{what} cannot be loaded: {first_line(problem)}") from None
