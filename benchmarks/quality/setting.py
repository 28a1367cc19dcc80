"""What all rows of a quality table share: data, teacher and guide."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random

import torch
from filelock import FileLock, Timeout
from safetensors.numpy import load_file

from trbert_deploy import console
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.errors import CheckpointError, ConfigError
from trbert_deploy.files import read_json, write_json
from trbert_deploy.modeling.checkpoints.hf_source import open_source
from trbert_deploy.modeling.checkpoints.pretrained import load_pretrained
from trbert_deploy.modeling.checkpoints.tokenizer import tokenizer_directory
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.modeling.checkpoints.weight_files import write_safetensors
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.tokenizing import TextTokenizer, TruncationWarning
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.task import Task
from trbert_deploy.training.data import TrainingRow, read_data, require_targets, tokenize
from trbert_deploy.training.recombining import recombine, require_recombinable
from trbert_deploy.training.row_outputs import RowOutputs
from trbert_deploy.training.stages.guide import Guide, answers, make_guide
from trbert_deploy.training.validation import Validator

SETTING_FILE = "setting.json"
#: Tokens of a batch that the teacher answers.
ANSWER_TOKENS = 8192


@dataclass(frozen=True)
class Setting:
    """Data and teacher.

    Attributes:
        teacher: directory of the fine-tuned dense model.
        train, validation: labelled data, as ``trbert-deploy train`` takes it; texts alone for a
            sentence encoder.
        texts: random training texts to take; None for all.
        max_length: most tokens of a text, the teacher's positions where None; beyond these the
            positions are tiled.
    """

    teacher: str
    train: str
    validation: str
    texts: int | None = None
    max_length: int | None = None

    def claim(self, directory: Path) -> None:
        """Make this the setting of ``directory``.

        Raises:
            ConfigError: it has another one.
        """
        path = directory / SETTING_FILE
        own = asdict(self)
        if path.exists() and (found := read_json(path)) != own:
            changed = ", ".join(name for name in own if found.get(name) != own[name])
            raise ConfigError(
                f"{directory} compares rows with another setting ({changed}): give the same one, "
                "or choose another --output"
            )
        write_json(path, own)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def spec(self) -> EncoderSpec:
        """The teacher's shape."""
        return self._dense.spec

    def load_teacher(self, cuts: str | None = None) -> ReducedModel:
        """A copy of the teacher, with new policies at ``cuts`` (the default places where None).

        They begin alike in all rows and seeds, which then differ in what they saw alone.
        """
        model = deepcopy(self._dense)
        torch.manual_seed(0)
        model.set_reduction(reduction_at(cuts, model.spec))
        return model.to(self.device)

    @property
    def task(self) -> Task:
        return task_of(self.spec)

    def validator(
        self,
        rows: Sequence[TrainingRow],
        batch_tokens: int,
        progress: Progress = no_progress,
    ) -> Validator:
        """Judges by labels, or validation rows by the teacher's answers where there are none."""
        teacher = None if self.has_labels else self.validation_answers
        return Validator(
            rows, self.task, self.has_labels, batch_tokens, self.device, teacher, progress
        )

    def answered_validator(self, rows: Sequence[TrainingRow], batch_tokens: int) -> Validator:
        """Judges as ``validator`` does, and knows the teacher's answers to the rows."""
        told = answers(self.load_teacher(""), rows, batch_tokens, self.device, no_progress)
        return replace(self.validator(rows, batch_tokens), teacher=told)

    @property
    def has_labels(self) -> bool:
        """Whether texts have what they are judged by."""
        return bool(self.task.columns)

    @cached_property
    def validation_answers(self) -> RowOutputs:
        """The teacher's."""
        rows = self.validation_rows
        return answers(self.load_teacher(""), rows, ANSWER_TOKENS, self.device, no_progress)

    @cached_property
    def training_rows(self) -> list[TrainingRow]:
        return self.tokenized(self._training_examples)

    @cached_property
    def _training_examples(self) -> list[Example]:
        return self._examples(self.train, self.texts)

    @cached_property
    def validation_rows(self) -> list[TrainingRow]:
        return self.read(self.validation)

    def read(self, source: str, count: int | None = None) -> list[TrainingRow]:
        """Rows of a file, ``count`` random ones (always the same) if it is given."""
        return self.tokenized(self._examples(source, count))

    def _examples(self, source: str, count: int | None) -> list[Example]:
        examples = read_data(source, type(self.task))
        if self.has_labels:
            require_targets(examples, self.task)
        if count is not None and count < len(examples):
            examples = Random(0).sample(examples, count)
        return examples

    def tokenized(self, examples: list[Example]) -> list[TrainingRow]:
        """Rows of examples, cut to the maximum length."""
        with tempfile.TemporaryDirectory() as scratch:
            path = tokenizer_directory(self.teacher, Path(scratch)) / TOKENIZER_FILE
            tokenizer = TextTokenizer(path, self.max_length or self.spec.max_positions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # a shorter maximum is a choice here
            return tokenize(examples, tokenizer, self.task)

    def guide(
        self, cuts: str | None, directory: Path, batch_tokens: int, progress: Progress
    ) -> Guide:
        """The teacher's view of the training rows, made once for each choice of cuts."""
        model = self.load_teacher(cuts)
        path = directory / f"guide-{model.reduction.places}.safetensors"
        with locked(path):
            if not path.exists():
                rows = self.training_rows
                make_guide(model, rows, batch_tokens, self.device, progress).save(path)
        return Guide.load(path, self.task)

    def recombined_rows(self, factor: float) -> list[TrainingRow]:
        """Rows made of the training rows, the same for all that ask for so many.

        Raises:
            DataError: these are no texts whose parts can be joined.
        """
        if factor:
            require_recombinable(self._training_examples, self.task)
        rows = self.training_rows
        return recombine(rows, round(factor * len(rows)), seed=0, task=self.task)

    def answers(
        self, factor: float, directory: Path, batch_tokens: int, progress: Progress
    ) -> RowOutputs:
        """The teacher's outputs on the recombined rows, computed once."""
        path = directory / f"answers-{factor:g}.safetensors"
        with locked(path):
            if not path.exists():
                rows, teacher = self.recombined_rows(factor), self.load_teacher()
                found = answers(teacher, rows, batch_tokens, self.device, progress)
                write_safetensors(path, found.tensors())
        return RowOutputs.of_tensors(load_file(path))

    @cached_property
    def _dense(self) -> ReducedModel:
        if not open_source(self.teacher).answers_anything:
            raise CheckpointError(
                f"{self.teacher} has no head that answers: expected a fine-tuned teacher, or a run "
                "of trbert-deploy train whose teacher stage is done"
            )
        model = load_pretrained(self.teacher, None, ReductionConfig()).model  # the labels it has
        if self.max_length and self.max_length > model.spec.max_positions:
            model.extend_positions(self.max_length)
        return model


def teacher_score(validator: Validator) -> float:
    """The score of the teacher's answers, which the validator knows."""
    assert validator.teacher is not None
    return validator.judged(validator.teacher).score


def set_up_torch(threads: int | None) -> None:
    """Settle what PyTorch takes of the machine; to be called before it computes anything."""
    # oneDNN keeps a primitive for every shape that it meets: gigabytes, as rows vary in length.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if threads is not None:
        torch.set_num_threads(threads)


def teacher_in(directory: Path) -> str:
    """The fine-tuned model of a run, or of a directory that is one itself."""
    stage = directory / "stages" / "teacher"
    return str(stage if stage.is_dir() else directory)


def reduction_at(cuts: str | None, spec: EncoderSpec) -> ReductionConfig:
    """The cuts as they are written on a command line; the default places where None."""
    if cuts is None:
        return ReductionConfig.default_for(spec)
    return ReductionConfig.parse(cuts)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time work on ``path``."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.notes.print(f"waiting for another process that makes {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
