"""What a training run needs before its first stage: rows of tokens, and a model that fits them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import DataError
from trbert_deploy.lexicon.entries import Entry, read_entries, require_tags
from trbert_deploy.lexicon.matcher import Lexicon, Matcher
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, lexicon_in
from trbert_deploy.modeling.checkpoints.pretrained import Pretrained, load_pretrained, task_for
from trbert_deploy.modeling.checkpoints.tokenizer import tokenizer_directory
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.tokenizing import tokenizer_for
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.registry import answering, task_of
from trbert_deploy.training.aim import rows_needed
from trbert_deploy.training.batches import stacked_targets
from trbert_deploy.training.data import (
    TrainingRow,
    read_data,
    split_validation,
    tokenize,
)
from trbert_deploy.training.lexicon_noise import NoisyLexicon
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.recipe import DISTILLING, Recipe
from trbert_deploy.training.recombining import recombine, require_recombinable
from trbert_deploy.training.validation import Validator
from trbert_deploy.training.warm_start import load_warm_start

NUM_SAMPLES = 16


@dataclass(frozen=True)
class Prepared:
    """What every stage shares.

    Attributes:
        checkpoint: the model that is trained, with its tokenizer.
        fine_tuned: whether it knows the labels already, so that it needs no teacher stage.
        warm_start: the model to go on from once this one, the teacher, has given its answers.
        training: the rows, tokenized.
        validator: judges by the rows that are held out.
        recombined: rows without labels that are made of the training rows.
        device: to compute on.
    """

    checkpoint: Checkpoint
    fine_tuned: bool
    warm_start: ReducedModel | None
    training: list[TrainingRow]
    validator: Validator
    recombined: list[TrainingRow]
    device: torch.device

    def rows_of(self, stage: str) -> list[TrainingRow]:
        """What a stage learns from: the teacher from labels, those that distil from all texts."""
        if stage == "teacher":
            targets = stacked_targets([row.target for row in self.training])
            labelled = self.checkpoint.model.head.has_target(targets).tolist()
            return [row for row, known in zip(self.training, labelled, strict=True) if known]
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
        ConfigError: the model has a head for another task.
    """
    recipe = options.recipe
    kind = task_for(options.model, options.task)
    given = None
    if options.lexicon is not None:
        kind.taking_lexicon()  # or it is refused
        given = tuple(read_entries(Path(options.lexicon)))

    def read(source: str, split: str) -> list[Example]:
        return read_data(source, kind, split, options.columns, note, progress)

    training = read(options.train, "train")
    # Rows that are held out of these may have labels that the others lack.
    labelled = [example for example in training if example.target is not None]
    if options.validation is None:
        training, validation = split_validation(training, recipe.seed)
        note(f"{len(validation)} of the training rows are held out for validation")
    else:
        validation = read(options.validation, "validation")
    head = kind.new_head(labelled) if labelled else None
    if options.max_drop and len(validation) < (needed := rows_needed(options.max_drop)):
        note(
            f"{len(validation)} validation rows cannot tell a loss of {options.max_drop:g} points "
            f"from chance: about {needed} are needed"
        )
    reduction = None if recipe.cuts is None else ReductionConfig.parse(recipe.cuts)
    torch.manual_seed(recipe.seed)
    progress("load model", 0, None)
    pretrained = load_pretrained(options.model, head, reduction, kind.name)
    model = pretrained.model
    model.spec = answering(model.spec, recipe.answers)
    if pretrained.note:
        note(pretrained.note)
    if labelled and recipe.stages == ("teacher",):  # nothing else is asked for: it learns more
        pretrained = replace(pretrained, fine_tuned=False)
    lexicon = lexicon_in(Path(options.model)) if given is None and model.takes_matches else given
    if lexicon and not model.takes_matches:
        if not labelled:
            raise DataError(
                "the texts have no labels, and what a lexicon's matches mean is learned from "
                "these: expected tagged texts, or no --lexicon"
            )
        model.spec = answering(model.spec, kind.taking_lexicon())
        model.tokens_head().take_matches(model.spec)
        # It answers as before until it has learned what a match means.
        pretrained = replace(pretrained, fine_tuned=False)
    if given is not None:
        require_tags(given, task_of(model.spec).lexicon_tags, f"the lexicon {options.lexicon}")
    validation, by_labels = _judged(validation, pretrained, options.model, note)
    if reduction is None and recipe.estimator == "reinforce":
        model.set_reduction(ReductionConfig.published_for(model.spec.num_layers))
    max_length = fit_positions(model, options.max_length, note, pretrained.max_length)
    warm_start = None
    if options.warm_start is not None:
        warm_start = load_warm_start(options.warm_start, model.spec, recipe.cuts)
        model.set_reduction(warm_start.reduction)
    tokenizer_dir = tokenizer_directory(options.model, scratch)
    task = task_of(model.spec)
    if recipe.recombined:
        require_recombinable(training, task)
    path = tokenizer_dir / TOKENIZER_FILE
    tokenizer = tokenizer_for(path, task, max_length, recipe.truncate)
    task = task.spelled(tokenizer.spelling)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        searched = _searched(lexicon or (), task.lexicon_tags, recipe, note, progress)
        rows = [
            tokenize(part, tokenizer, task, progress, matcher)
            for part, matcher in zip((training, validation), searched, strict=True)
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
            recipe=recipe.to_toml(),
            lexicon=lexicon or (),
        ),
        fine_tuned=pretrained.fine_tuned,
        warm_start=warm_start,
        training=rows[0],
        validator=Validator(rows[1], task, by_labels, recipe.batch_tokens, device),
        recombined=recombine(rows[0], round(recipe.recombined * len(rows[0])), recipe.seed, task),
        device=device,
    )


def _searched(
    entries: tuple[Entry, ...],
    tags: tuple[str, ...],
    recipe: Recipe,
    note: Callable[[str], None],
    progress: Progress,
) -> tuple[Matcher | None, Matcher | None]:
    """What finds the lexicon's phrases in the training texts, with noise, and in the others."""
    if not entries:
        return None, None
    progress("read lexicon", 0, None)
    lexicon = Lexicon(entries)
    missing, wrong = recipe.lexicon.missing_share, recipe.lexicon.wrong_share
    note(
        f"the lexicon has {len(lexicon):,} phrases: in training {missing:.0%} of their matches are "
        f"left out, and {wrong:.0%} wrong ones are added"
    )
    return NoisyLexicon(lexicon, tags, missing, wrong, recipe.seed), lexicon


def _judged(
    validation: list[Example],
    pretrained: Pretrained,
    where: str,
    note: Callable[[str], None],
) -> tuple[list[Example], bool]:
    """The held-out examples that are judged, and whether by their labels.

    Raises:
        DataError: a teacher is to be trained first, and nothing says how good it is.
    """
    labelled = [example for example in validation if example.target is not None]
    if len(labelled) == len(validation):
        return validation, True
    if pretrained.fine_tuned:
        note(
            f"{len(validation) - len(labelled)} of {len(validation)} validation texts have no "
            f"label: judged is how far answers agree with those of {where}"
        )
        return validation, False
    if not labelled:
        raise DataError(
            f"none of the {len(validation)} validation texts has a label, which a new head is "
            "judged by: expected labelled ones, or a fine-tuned model"
        )
    return labelled, True


def fit_positions(
    model: ReducedModel,
    max_length: int | None,
    note: Callable[[str], None] = lambda message: None,
    own: int | None = None,
) -> int:
    """A run's maximum length; the position table is tiled where it is too short.

    Args:
        max_length: that was asked for; None for the model's own, or for all of its positions.
        own: the model's.
    """
    positions = model.spec.max_positions
    if max_length is None:
        return min(own or positions, positions)
    if max_length <= positions:
        return max_length
    model.extend_positions(max_length)
    note(f"positions extended from {positions} to {max_length} by tiling")
    return max_length


def _sample_texts(validation: list[Example]) -> tuple[Text, ...]:
    """Texts for benchmarks, spread over the validation data."""
    texts = [example.text for example in validation]
    return tuple(texts[:: max(1, len(texts) // NUM_SAMPLES)][:NUM_SAMPLES])
