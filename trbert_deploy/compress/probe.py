"""Before hours are spent: does dropping tokens pay here, and how long will it take?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trbert_deploy.bench.baselines import with_ratio
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.evaluation.quality import ModelRun, run_in_turns
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.modeling.checkpoints.pretrained import load_pretrained
from trbert_deploy.modeling.checkpoints.tokenizer import tokenizer_directory
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.tokenizing import tokenizer_for
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.registry import answering, task_of
from trbert_deploy.training.prepare import fit_positions

#: Measured speed-up from which training is worth its time.
LEAST_GAIN = 1.1
#: Texts that both models are timed on.
TIMED_TEXTS = 48
#: Widens the keep logits of new policies, so that no rounding decides which tokens they keep.
_SPREAD = 20.0
BUNDLE = "bundle"


@dataclass(frozen=True)
class Payoff:
    """What the chain would save, told by the same model with policies that know nothing.

    What a chain takes depends on how many tokens it keeps, not on which ones. How many texts leave
    at exits depends on what these learn: none does here, and the exits' own time is in it.

    Attributes:
        tokens_per_text: mean, special tokens included.
        dense_ms, reduced_ms: mean time of a text, one at a time; None where nothing was timed.
        reason: why dropping tokens does not pay, if it does not.
    """

    tokens_per_text: float
    dense_ms: float | None
    reduced_ms: float | None
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_payoff(
    model: str,
    examples: Sequence[Example],
    target_speedup: float,
    directory: Path,
    *,
    max_length: int | None = None,
    cuts: str | None = None,
    exits: bool = False,
    answers: Mapping[str, Any] = {},
    task: str | None = None,
    progress: Progress = no_progress,
) -> Payoff:
    """Export the model with untrained policies that keep so much, and time it on real texts.

    Args:
        examples: to be timed on, up to ``TIMED_TEXTS`` of them.
        target_speedup: FLOPs of the dense model over the chain's.
        directory: receives ``bundle``, whose dense graph is the model as it came.
        exits: the cuts will have some.
        answers: as ``Recipe.answers``.
        task: that the model is asked for, as ``load_pretrained`` takes it.

    Raises:
        CheckpointError, ParityError: the model cannot be exported.
        DataError, LengthError: a text that it cannot take.
    """
    progress("load model", 0, None)
    texts = [each.text for each in examples[:TIMED_TEXTS]]
    names = [each.name for each in examples[:TIMED_TEXTS]]
    with tempfile.TemporaryDirectory() as scratch:
        reduction = None if cuts is None else ReductionConfig.parse(cuts)
        checkpoint = _checkpoint(model, texts, Path(scratch), max_length, reduction, answers, task)
        spec, reduction = checkpoint.model.spec, checkpoint.model.reduction
        if exits:
            reduction = reduction.with_exits(ExitRule(1.0))
        path = checkpoint.tokenizer_dir / TOKENIZER_FILE
        tokenizer = tokenizer_for(path, task_of(spec), checkpoint.max_length)
        lengths = np.array([len(each) for each in tokenizer.encode(texts, names)], np.int64)
        mean = float(lengths.mean())
        try:
            reduction = with_ratio(spec, reduction, lengths, target_speedup)
        except ConfigError:
            reason = (
                f"texts of {mean:.0f} tokens cannot be made {target_speedup:g} times cheaper: "
                "expected longer texts, or a smaller --target-speedup"
            )
            return Payoff(mean, None, None, reason)
        checkpoint.model.set_reduction(reduction)
        save_checkpoint(checkpoint, Path(scratch) / "ckpt")
        export_bundle(Path(scratch) / "ckpt", directory / BUNDLE, progress=progress)
    pipeline = load(directory / BUNDLE)
    warm_up, runs = ([ModelRun(pipeline, dense=True), ModelRun(pipeline)] for _ in range(2))
    run_in_turns(warm_up, examples[:2])  # the first calls of a graph are slower
    timed = examples[:TIMED_TEXTS]
    run_in_turns(runs, timed, lambda _, done, total: progress("time", done, total), batch_size=1)
    dense, reduced = (1e3 * run.timing.total_seconds / len(timed) for run in runs)
    slow: str | None = None
    if dense < LEAST_GAIN * reduced:
        slow = (
            f"with {target_speedup:g} times fewer operations a text of {mean:.0f} tokens takes "
            f"{reduced:.2f} ms here and without {dense:.2f}, {dense / reduced:.2f} times as long: "
            "the model is too small, or its texts are too short, for dropped tokens to save time"
        )
    return Payoff(mean, dense, reduced, slow)


def export_dense(
    model: str,
    examples: Sequence[Example],
    output: Path,
    *,
    max_length: int | None = None,
    answers: Mapping[str, Any] = {},
    task: str | None = None,
    progress: Progress = no_progress,
) -> None:
    """Export the model without any cut, whatever it was trained for.

    Raises:
        CheckpointError, ParityError: the model cannot be exported.
    """
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = _checkpoint(
            model,
            [each.text for each in examples],
            Path(scratch),
            max_length,
            ReductionConfig(),
            answers,
            task,
        )
        save_checkpoint(checkpoint, Path(scratch) / "ckpt")
        export_bundle(Path(scratch) / "ckpt", output, progress=progress)


def _checkpoint(
    model: str,
    texts: Sequence[Text],
    scratch: Path,
    max_length: int | None,
    reduction: ReductionConfig | None,
    answers: Mapping[str, Any],
    task: str | None,
) -> Checkpoint:
    """The model with new policies at the cuts, that know nothing yet."""
    torch.manual_seed(0)
    pretrained = load_pretrained(model, None, reduction, task)
    pretrained.model.spec = answering(pretrained.model.spec, answers)
    limit = fit_positions(pretrained.model, max_length)
    with torch.no_grad():
        for policy in pretrained.model.policies:
            policy.get_parameter("score.weight").mul_(_SPREAD)
    return Checkpoint(
        pretrained.model,
        tokenizer_directory(model, scratch),
        limit,
        samples=tuple(texts),
        hf_config=pretrained.hf_config,
    )
