"""What a training run needs before its first stage: rows of tokens, and a model that fits them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from trbert_deploy.config import ReductionConfig
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint
from trbert_deploy.modeling.checkpoints.pretrained import Pretrained, load_pretrained
from trbert_deploy.modeling.checkpoints.tokenizer import tokenizer_directory
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.tokenizing import TextTokenizer
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.task import Example
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.training.aim import rows_needed
from trbert_deploy.training.data import (
    TrainingRow,
    read_examples,
    split_validation,
    tokenize,
)
from trbert_deploy.training.options import DISTILLING, TrainOptions
from trbert_deploy.training.recombining import recombine
from trbert_deploy.training.warm_start import load_warm_start

NUM_SAMPLES = 16


@dataclass(frozen=True)
class Prepared:
    """What every stage shares.

    Attributes:
        checkpoint: the model that is trained, with its tokenizer.
        fine_tuned: whether it knows the labels already.
        warm_start: the model to go on from once this one, the teacher, has given its answers.
        training, validation: the rows, tokenized.
        recombined: rows without labels that are made of the training rows.
        device: to compute on.
    """

    checkpoint: Checkpoint
    fine_tuned: bool
    warm_start: ReducedModel | None
    training: list[TrainingRow]
    validation: list[TrainingRow]
    recombined: list[TrainingRow]
    device: torch.device

    def rows_of(self, stage: str) -> list[TrainingRow]:
        """What a stage learns from: those that distil take rows without labels too."""
        return self.training + self.recombined if stage in DISTILLING else self.training


def prepare(
    options: TrainOptions,
    scratch: Path,
    device: torch.device,
    note: Callable[[str], None],
    progress: Progress = no_progress,
) -> Prepared:
    """Read the data, load the model, tokenize.

    Args:
        scratch: an empty directory, for the tokenizer's files.
        note: told what a person should know.
        progress: told while data is read and tokenized.

    Raises:
        CheckpointError, DataError, LengthError, StorageError: the model or the data cannot be used.
    """
    training = read_examples(options.train, progress=progress)
    if options.validation is None:
        training, validation = split_validation(training, options.seed)
        note(f"{len(validation)} of the training rows are held out for validation")
    else:
        validation = read_examples(options.validation, split="validation", progress=progress)
    labels = TextClassification.labels_in(training)
    if options.max_drop and len(validation) < (needed := rows_needed(options.max_drop)):
        note(
            f"{len(validation)} validation rows cannot tell a loss of {options.max_drop:g} points "
            f"from chance: about {needed} are needed"
        )
    reduction = None if options.cuts is None else ReductionConfig.parse(options.cuts)
    torch.manual_seed(options.seed)
    progress("load model", 0, None)
    pretrained = load_pretrained(options.model, labels, reduction)
    model = pretrained.model
    if pretrained.note:
        note(pretrained.note)
    if reduction is None and options.estimator == "reinforce":
        model.set_reduction(ReductionConfig.published_for(model.spec.num_layers))
    max_length = _fit_positions(pretrained, options, note)
    warm_start = None
    if options.warm_start is not None:
        warm_start = load_warm_start(options.warm_start, model.spec, options.cuts)
        model.set_reduction(warm_start.reduction)
    tokenizer_dir = tokenizer_directory(options.model, scratch)
    tokenizer = TextTokenizer(tokenizer_dir / TOKENIZER_FILE, max_length, options.truncate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [
            tokenize(part, tokenizer, task_of(model.spec), progress)
            for part in (training, validation)
        ]
    progress("recombine texts", 0, None)
    if tokenizer.truncated:
        note(
            f"{tokenizer.truncated} of {tokenizer.encoded} texts were cut to {max_length} tokens "
            "(a larger --max-length trains on more, beyond the encoder's positions too)"
        )
    return Prepared(
        checkpoint=Checkpoint(
            model,
            tokenizer_dir,
            max_length,
            samples=_sample_texts(validation),
            hf_config=pretrained.hf_config,
        ),
        fine_tuned=pretrained.fine_tuned,
        warm_start=warm_start,
        training=rows[0],
        validation=rows[1],
        recombined=recombine(
            rows[0],
            round(options.recombined * len(rows[0])),
            options.seed,
            model.head.no_target,
        ),
        device=device,
    )


def _fit_positions(
    pretrained: Pretrained, options: TrainOptions, note: Callable[[str], None]
) -> int:
    """The run's maximum length; the position table is tiled where it is too short."""
    positions = pretrained.model.spec.max_positions
    if options.max_length is None or options.max_length <= positions:
        return options.max_length or positions
    pretrained.model.extend_positions(options.max_length)
    note(f"positions extended from {positions} to {options.max_length} by tiling")
    return options.max_length


def _sample_texts(validation: list[Example]) -> tuple[str, ...]:
    """Texts for benchmarks, spread over the validation data."""
    texts = [example.text for example in validation if isinstance(example.text, str)]
    return tuple(texts[:: max(1, len(texts) // NUM_SAMPLES)][:NUM_SAMPLES])
