"""What a lexicon's matches say of the labels of tokens (after DyLex, Wang et al. 2021).

A match is known by its tag and by whether a token begins it, never by its words: so the lexicon can
be another one without training.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from trbert_deploy.lexicon.columns import AFTER, BEFORE, RIGHT, TAG

#: So that a loss of 0 says that there is nothing to learn.
_LEAST_LOSS = 1e-9
#: Logit that a match which has all of a token's attention adds to its label, before anything is
#: learned: more than what keeps apart the labels of a token that a teacher is sure of.
_VOTE = 8.0
#: Before that, attention is mostly on none.
_RESERVE = -1.0


class LexiconVotes(nn.Module):
    """Column-wise attention: each token attends to the matches that it is part of, and to none.

    What a token attends to adds to the logits of its labels. How far a match is trusted is told by
    the states of all of its tokens, so that it is the same for all of them; in training it is
    learned from whether the labels say the same as the match.

    Args:
        width: H.
        labels: [2 * tags, C], of each tag at the beginning of a match and inside of it which labels
            say the same: 1, else 0.
    """

    def __init__(self, width: int, labels: NDArray[Any]) -> None:
        super().__init__()
        kinds, count = labels.shape
        self.key = nn.Linear(width, kinds)
        self.trust = nn.Linear(width, kinds)
        self.vote = nn.Linear(kinds, count, bias=False)
        self._labels = labels

    def start(self) -> None:
        """As it is before it has learned anything: matches are heard a little."""
        for module in (self.key, self.trust):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        nn.init.constant_(self.key.bias, _RESERVE)
        with torch.no_grad():
            self.vote.weight.copy_(_VOTE * torch.from_numpy(self._labels).T)

    def forward(self, hidden: Tensor, matches: Tensor) -> tuple[Tensor, Tensor]:
        """What matches say.

        Args:
            hidden: [..., S, H]; the tokens of a match stand one behind the other.
            matches: [..., S, M, 3 or 4] int64, as ``lexicon.columns`` makes them.

        Returns:
            What is added to the logits [..., S, C] float32, 0 where there is no match; and for each
            slot the logit [..., S, M] float32 that its match is right.
        """
        hidden = hidden.float()
        tag, before, after = (matches[..., part] for part in (TAG, BEFORE, AFTER))
        kind = torch.where(tag > 0, 2 * tag - (before == 0).long(), 0)  # from 1 on
        numbers = torch.arange(1, self.key.out_features + 1, device=matches.device)
        chosen = (kind[..., None] == numbers).float()  # [..., S, M, kinds]
        keys = (self.key(hidden)[..., None, :] * chosen).sum(-1)
        trust = _mean_over_matches(
            (self.trust(hidden)[..., None, :] * chosen).sum(-1), before, after
        )
        scores = (keys + logsigmoid(trust)).masked_fill(tag == 0, -torch.inf)
        none = torch.zeros_like(scores[..., :1])
        weights = torch.cat([none, scores], -1).softmax(-1)[..., 1:]
        return self.vote((weights[..., None] * chosen).sum(-2)), trust


def _mean_over_matches(values: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The mean of each match's values, at all of its tokens: [..., S, M], 0 where there is none.

    By running sums, so that no size depends on how long matches are.
    """
    sums = values.cumsum(-2)
    longest = values.shape[-2]
    place = torch.arange(longest, device=values.device)[:, None]
    last = (place + after).clamp(max=longest - 1)
    first = (place - before).clamp(min=0)
    total = sums.gather(-2, last) - (sums - values).gather(-2, first)
    return total / (before + after + 1)


def denoising_losses(trust: Tensor, matches: Tensor) -> Tensor:
    """How far the trust in a token's matches is from what is right, summed: [..., S, 1] float32.

    Above 0 exactly where a token has a match of which that is known.

    Args:
        trust: [..., S, M] logits.
        matches: [..., S, M, 4] int64, which say which ones are right.
    """
    right = matches[..., RIGHT]
    losses = binary_cross_entropy_with_logits(trust, right.float(), reduction="none")
    known = (matches[..., TAG] > 0) & (right >= 0)
    return torch.where(known, losses.clamp_min(_LEAST_LOSS), 0.0).sum(-1, keepdim=True)
