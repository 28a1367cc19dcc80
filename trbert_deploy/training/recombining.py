"""New texts out of old ones, which the teacher then labels.

A fitted teacher knows the labels of its training texts by heart, so there is little left to learn
from its answers on them. Texts that it has not seen say more; parts of two texts joined are such
texts (data augmentation for distillation, after Tang et al. 2019 and Jiao et al. 2020, TinyBERT,
who replace words instead).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trbert_deploy.errors import DataError
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.task import Task
from trbert_deploy.training.data import TrainingRow

#: Largest and smallest share of its text that a part may be.
_SHARES = (0.2, 0.8)


def require_recombinable(examples: Sequence[Example], task: Task) -> None:
    """Refuse what parts of two texts make no text of.

    Raises:
        DataError: there are pairs of texts, or it is their tokens that are answered.
    """
    if task.answers_tokens:
        raise DataError(
            f"texts for {task.name} cannot be recombined: leave recombined at 0 in the recipe"
        )
    if any(not isinstance(example.text, str) for example in examples):
        raise DataError(
            "pairs of texts cannot be recombined: leave recombined at 0, or train on single texts"
        )


def recombine(rows: Sequence[TrainingRow], count: int, seed: int, task: Task) -> list[TrainingRow]:
    """Join a part of one row with a part of another.

    The parts are runs of tokens, a share s of the first row's and 1 - s of the second's, so that
    a new row is never longer than the longer of the two. First and last token (``[CLS]`` and
    ``[SEP]``) stay where they are.

    Args:
        rows: single texts.
        count: rows to make.
        seed: the same one makes the same rows.
        task: what is answered.

    Returns:
        ``count`` rows without targets.
    """
    if not count:
        return []
    generator = np.random.default_rng(seed)
    pairs = generator.integers(0, len(rows), (count, 2))
    shares = generator.uniform(*_SHARES, count)
    made, no_target = [], task.no_target()
    for (first, second), share in zip(pairs.tolist(), shares.tolist(), strict=True):
        front, back = (rows[index].tokens.input_ids for index in (first, second))
        parts = _part(front, share, generator), _part(back, 1.0 - share, generator)
        ids = np.concatenate([front[:1], *parts, front[-1:]])
        made.append(TrainingRow(TokenRow(ids, np.zeros_like(ids)), no_target))
    return made


def _part(ids: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """A run of so many of the tokens between the first and the last one."""
    inner = ids[1:-1]
    length = int(len(inner) * share)
    start = int(generator.integers(0, len(inner) - length + 1))
    return inner[start : start + length]
