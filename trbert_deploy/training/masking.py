"""Masked language modelling on packed rows: which tokens are hidden, and how well they are found.

Whole words are hidden, as in BERT's later models; of those 80 % become the mask token, 10 % another
token, and 10 % stay as they are (Devlin et al. 2019, section 3.1). They are drawn anew in every
step, as in RoBERTa.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding
from torch import Tensor

from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import begin
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.training.batches import PackedBatch
from trbert_deploy.training.data import TrainingRow

#: Word of a token that is never hidden: a special one.
NO_WORD = -1
_MASKED, _OTHER = 0.8, 0.9


def rows_of_words(encodings: Sequence[Encoding], rows: Sequence[TokenRow]) -> list[TrainingRow]:
    """Rows whose targets are the words that their tokens belong to: [S] int64 each.

    Args:
        rows: of the encodings; those that are read in windows become as many rows.
    """
    found = []
    for encoding, row in zip(encodings, rows, strict=True):
        words = words_of(encoding)
        for window in row.windows or [np.arange(len(row))]:
            found.append(TrainingRow(row.part(window), words[window]))
    return found


def words_of(encoding: Encoding) -> NDArray[np.int64]:
    """The word of each token, numbered through both texts of a pair: [S] int64."""
    words, texts = encoding.word_ids, encoding.sequence_ids
    behind = 1 + max((word for word in words if word is not None), default=0)
    return np.array(
        [
            NO_WORD if word is None else word + behind * (text or 0)
            for word, text in zip(words, texts, strict=True)
        ],
        np.int64,
    )


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden.

    Attributes:
        share: of the words that are hidden.
        mask: id of the token that stands for a hidden one.
        others: [V] int64, ids of the tokens that may take a hidden one's place.
    """

    share: float
    mask: int
    others: Tensor

    def hide(
        self, batch: PackedBatch, generator: torch.Generator | None = None
    ) -> tuple[PackedBatch, Tensor]:
        """A batch of ``rows_of_words`` with some tokens hidden, and which: [T] bool.

        At least one word is hidden wherever there is one.

        Args:
            generator: of the choice; the process' own by default.
        """
        device = batch.input_ids.device
        layout = batch.layout
        words = layout.unpad(batch.targets)
        of_text = words != NO_WORD
        numbers = words + layout.row_of_token * (1 + int(words.max()))  # through all rows
        _, word = torch.unique(numbers, return_inverse=True)

        def draw(count: int) -> Tensor:
            return torch.rand(count, generator=generator).to(device)

        luck = draw(int(word.max()) + 1)[word].masked_fill(~of_text, 2.0)
        hidden = (luck <= luck.min().clamp(min=self.share)) & of_text
        kind, other = draw(len(word)), draw(len(word))
        others = self.others.to(device)
        other_ids = others[(other * len(others)).long().clamp(max=len(others) - 1)]
        ids = torch.where(hidden & (kind < _MASKED), self.mask, batch.input_ids)
        ids = torch.where(hidden & (kind >= _MASKED) & (kind < _OTHER), other_ids, ids)
        return replace(batch, input_ids=ids), hidden


def masked_losses(
    model: ReducedModel, given: PackedBatch, shown: PackedBatch, hidden: Tensor
) -> Tensor:
    """The head's loss of the hidden tokens, in nats: one for each.

    Args:
        model: with the head for masked words, all of them.
        given: the batch as it was.
        shown: as the model sees it.
        hidden: [T] bool.
    """
    states = begin(model, shown).run(model, 0, model.spec.num_steps).hidden[hidden]
    outputs = model.tokens_head().each(states[:, None])  # each token is a row of its own
    return model.head.loss(outputs, given.input_ids[hidden][:, None])
