"""Masked words of unlabelled texts, before the teacher learns its task.

An encoder that reads more of a domain, or of the task's own texts, learns the task better where its
pretraining saw little of the kind ("Don't Stop Pretraining", Gururangan et al. 2020). What comes of
it is a checkpoint of its own, for masked words, whose encoder the teacher begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trbert_deploy.modeling.checkpoints.pretrained import Pretrained, load_pretrained
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.progress import Progress
from trbert_deploy.runtime.tokenizing import TextTokenizer
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.fill_mask import MASK_ID, TARGET_IDS, FillMask
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.task import NewHead, Task
from trbert_deploy.training import processes
from trbert_deploy.training.batches import PackedBatch, load_batches, plan_batches
from trbert_deploy.training.contexts import autocast, evaluating
from trbert_deploy.training.data import TrainingRow, encoded, read_data, split_validation
from trbert_deploy.training.loop import StageSettings, train_stage
from trbert_deploy.training.masking import Masking, masked_losses, rows_of_words
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.prepare import Prepared, fit_positions
from trbert_deploy.training.recipe import PRETRAIN
from trbert_deploy.training.stages.stage import Compute, Stage, Step

#: Tokens that neighbouring pieces of a long text share: reading in pieces needs some.
_OVERLAP = 1


def pretrain(
    options: TrainOptions,
    run: Prepared,
    directory: Path,
    progress: Progress,
    note: Callable[[str], None],
) -> None:
    """Let the encoder of a run's model learn masked words first.

    Goes on where an interrupted run was. Long texts are read in pieces, of which nothing is cut.

    Args:
        run: whose model is changed, in place.
        directory: of the stage; receives the checkpoint for masked words.

    Raises:
        CheckpointError, ConfigError: the model can have no head for masked words.
        DataError, StorageError: the texts cannot be used.
    """
    recipe, own = options.recipe, run.checkpoint
    task = task_of(own.model.spec)
    assert options.pretrain is not None
    examples = read_data(
        options.pretrain,
        type(task),
        "train",
        options.columns,
        note,
        progress,
    )
    torch.manual_seed(recipe.seed)
    source = load_masked_model(options.model, examples)
    model = source.model
    fit_positions(model, own.max_length)
    model.to(run.device)
    parts = split_validation(examples, recipe.seed)
    path = own.tokenizer_dir / TOKENIZER_FILE
    tokenizer = TextTokenizer(path, own.max_length, overlap=_OVERLAP)
    training, held_out = (_tokenize(part, tokenizer, task, progress) for part in parts)
    masking = masking_for(model, recipe.pretrain.masked_share, tokenizer)
    judge = _judge(model, masking, held_out, recipe.batch_tokens, run.device)
    settings = StageSettings.planned(PRETRAIN, recipe, training, directory, run.device)
    before = judge(0.0)
    train_stage(settings, model, _stage(model, masking, options), training, judge, progress)
    note(
        f"masked words of {len(examples)} texts: loss {-before:.3f} before, "
        f"{-judge(1.0):.3f} after, on those that are held out"
    )
    if processes.is_main():
        learned = Checkpoint(
            model,
            own.tokenizer_dir,
            own.max_length,
            hf_config=source.hf_config,
            recipe=own.recipe,
        )
        save_checkpoint(learned, directory)
    processes.wait()
    _take_over(own.model, model)


def take_over_pretrained(run: Prepared, directory: Path) -> None:
    """Begin with the encoder of an earlier ``pretrain``."""
    _take_over(run.checkpoint.model, load_checkpoint(directory).model)


def _take_over(model: ReducedModel, other: ReducedModel) -> None:
    model.encoder.load_state_dict(other.encoder.state_dict())


def load_masked_model(where: str, examples: Sequence[Example]) -> Pretrained:
    """An encoder with its head for masked words, or with a new one.

    Raises:
        CheckpointError, ConfigError: it can have none.
    """
    told = f"the masked words of {len(examples)} texts"
    head = NewHead(FillMask.name, (), {}, (), told)
    found = load_pretrained(where, head, None, FillMask.name)
    if words := found.model.spec.answers[TARGET_IDS]:
        raise ConfigError(
            f"{where} chooses among {len(words)} words: masked words of --pretrain may be any; "
            "give the encoder that it was fine-tuned from"
        )
    return found


def masking_for(model: ReducedModel, share: float, tokenizer: TextTokenizer) -> Masking:
    """Masking with the tokens of a model's tokenizer."""
    special = [*tokenizer.spelling.added]
    others = np.setdiff1d(np.arange(model.spec.vocab_size), special)
    return Masking(share, model.spec.answers[MASK_ID], torch.from_numpy(others))


def _tokenize(
    examples: Sequence[Example], tokenizer: TextTokenizer, task: Task, progress: Progress
) -> list[TrainingRow]:
    """Texts in pieces that the model takes, with the words that their tokens belong to."""
    rows: list[TrainingRow] = []
    for _, names, encodings in encoded(examples, tokenizer, task, progress):
        rows += rows_of_words(encodings, tokenizer.rows(encodings, task.protected, names))
    return rows


def _stage(model: ReducedModel, masking: Masking, options: TrainOptions) -> Stage:
    body = [*model.encoder.parameters(), *model.head.parameters()]
    groups = [{"params": body, "lr": options.recipe.pretrain.learning_rate}]
    return Stage(_compute(model, masking), groups, dropout=True)


def _compute(model: ReducedModel, masking: Masking) -> Compute:
    def compute(batch: PackedBatch, _: float) -> Step:
        shown, hidden = masking.hide(batch)
        losses = masked_losses(model, batch, shown, hidden)
        share = batch.share
        return Step(share.total(losses.sum()) / share.total(hidden.sum().float()), {})

    return compute


def _judge(
    model: ReducedModel,
    masking: Masking,
    rows: Sequence[TrainingRow],
    batch_tokens: int,
    device: torch.device,
) -> Callable[[float], float]:
    """How a model finds the masked words of rows, always the same ones: minus the mean loss."""

    def judge(_: float) -> float:
        generator = torch.Generator().manual_seed(0)
        plan = plan_batches([len(row) for row in rows], batch_tokens)
        found: list[Tensor] = []
        with evaluating(model), autocast(device):
            for batch in load_batches(rows, plan, device):
                shown, hidden = masking.hide(batch, generator)
                found.append(masked_losses(model, batch, shown, hidden).float())
        return -float(torch.cat(found).mean())

    return judge
