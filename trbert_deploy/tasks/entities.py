"""Probabilities of tokens to the entities of a text, as transformers' pipeline has them.

TokenClassificationPipeline of transformers 5, with its ``aggregation_strategy``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.tasks.chunks import OUTSIDE
from trbert_deploy.tasks.spelling import Spelling
from trbert_deploy.tasks.tokens import special_tokens

NONE, SIMPLE, FIRST, AVERAGE, MAX = AGGREGATIONS = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True)
class TaggedToken:
    """A token, or a word, with its label.

    Attributes:
        entity: the label.
        score: its probability.
        index: place of the token in the row; of a word that of its first.
        word: as the tokenizer writes it.
        start, end: the letters of the text that it stands for.
    """

    entity: str
    score: float
    index: int
    word: str
    start: int
    end: int


@dataclass(frozen=True)
class Entity:
    """An entity of a text.

    Attributes:
        entity_group: its type, the label without ``B-`` and ``I-``.
        score: mean probability of its tokens' labels, or of its words'.
        word: as the tokenizer writes it.
        start, end: the letters of the text that it stands for.
    """

    entity_group: str
    score: float
    word: str
    start: int
    end: int


def entities_of(
    probabilities: NDArray[np.float64],
    labels: Sequence[str],
    encoding: Any,
    text: str,
    spelling: Spelling,
    aggregation: str,
    ignored: Collection[str] = (OUTSIDE,),
) -> tuple[TaggedToken, ...] | tuple[Entity, ...]:
    """The entities of a text, or with ``none`` its tokens that are in one.

    Args:
        probabilities: [S, C] of every token's labels.
        labels: [C] names of the labels.
        aggregation: one of ``AGGREGATIONS``: how tokens are made one entity. ``simple`` takes each
            token's own label. The others give all tokens of a word one label: that of its
            ``first`` token, of the mean of its probabilities (``average``), or of the token that
            is surest (``max``).
        ignored: labels, or types of entities, that are left out.
    """
    whole_words = aggregation not in (NONE, SIMPLE)
    continues = spelling.continues(encoding, text) if whole_words else None
    groups: list[list[int]] = []
    for place in np.flatnonzero(~special_tokens(encoding)).tolist():
        if groups and continues is not None and continues[place]:
            groups[-1].append(place)
        else:
            groups.append([place])
    if not groups:
        return ()
    scores = np.stack([_scores(probabilities[group], aggregation) for group in groups])  # [G, C]
    chosen = zip(groups, scores.argmax(1).tolist(), scores.max(1).tolist(), strict=True)
    words, offsets = spelling.words(encoding, text), encoding.offsets
    tagged = [
        TaggedToken(
            entity=labels[label],
            score=score,
            index=group[0],
            word=spelling.joined([words[place] for place in group])
            if whole_words
            else words[group[0]],
            start=offsets[group[0]][0],
            end=offsets[group[-1]][1],
        )
        for group, label, score in chosen
    ]
    if aggregation == NONE:
        return tuple(each for each in tagged if each.entity not in ignored)
    found = _grouped(tagged, spelling)
    return tuple(entity for entity in found if entity.entity_group not in ignored)


def _scores(probabilities: NDArray[np.float64], aggregation: str) -> NDArray[np.float64]:
    """What a word's tokens [T, C] say together: [C]."""
    if aggregation == AVERAGE:
        return np.asarray(probabilities.mean(0))
    return probabilities[int(probabilities.max(1).argmax()) if aggregation == MAX else 0]


def _grouped(tagged: Sequence[TaggedToken], spelling: Spelling) -> list[Entity]:
    """Neighbours of one type as one entity, which ``B-`` begins."""
    groups: list[list[TaggedToken]] = []
    for each in tagged:
        if groups and not each.entity.startswith("B-") and _type(each) == _type(groups[-1][-1]):
            groups[-1].append(each)
        else:
            groups.append([each])
    return [
        Entity(
            entity_group=group[0].entity.split("-", 1)[-1],
            score=float(np.mean([each.score for each in group])),
            word=spelling.joined([each.word for each in group]),
            start=group[0].start,
            end=group[-1].end,
        )
        for group in groups
    ]


def _type(tagged: TaggedToken) -> str:
    """The type of a label; letters of other schemes than BIO belong to it."""
    return tagged.entity[2:] if tagged.entity.startswith(("B-", "I-")) else tagged.entity
