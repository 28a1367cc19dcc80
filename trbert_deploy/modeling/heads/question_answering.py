"""The head for where the answer to a question starts and ends."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.heads.sequence import LABEL_WEIGHT
from trbert_deploy.modeling.heads.text_classification import TEMPERATURE
from trbert_deploy.modeling.heads.token_logits import TokenLogitsHead, counted
from trbert_deploy.tasks.question_answering import END, OTHER, START, QuestionAnswering
from trbert_deploy.tasks.task import NO_TOKEN
from trbert_deploy.tasks.text_classification import LOGITS


class QuestionAnsweringHead(TokenLogitsHead):
    """Two logits for each token, of which one token is the right start, and one the right end.

    Targets are codes [B, S] int64 (``tasks.question_answering``). A row that has not both of an
    answer's ends, such as a window beside it, has no answer: the first token is both of its ends.
    """

    task = QuestionAnswering.name

    @classmethod
    def build(cls, spec: EncoderSpec) -> Self:
        if len(spec.labels) != 2:
            raise ConfigError(
                f"the head for {cls.task} has {len(spec.labels)} logits for a token: expected 2, "
                "for the start of an answer and its end"
            )
        return cls(spec, QuestionAnswering.outputs)

    def loss(
        self, outputs: Outputs, target: Tensor | None, teacher: Outputs | None = None
    ) -> Tensor:
        """Cross-entropy of start and end, their mean, or distillation with a little of it.

        Distillation (Hinton et al. 2015) is as that of text classification, over a row's tokens
        that an answer may be made of.
        """
        logits = outputs[LOGITS]
        if teacher is None:
            assert target is not None  # a loss without labels needs a teacher
            return self._label_loss(logits, target)
        which = counted(target, teacher)
        wanted = _log_probabilities(teacher[LOGITS] / TEMPERATURE, which)
        found = _log_probabilities(logits / TEMPERATURE, which)
        divergence = (wanted.exp() * (wanted - found)).where(which[..., None], 0.0)
        distilled = divergence.sum(1).mean(-1) * TEMPERATURE**2
        if target is None:
            return distilled
        return distilled + LABEL_WEIGHT * self._label_loss(logits, target)

    def path_loss(self, outputs: Outputs, target: Tensor | None, teacher: Outputs) -> Tensor:
        """Cross-entropy with the teacher's probabilities, or their mean with the labels'."""
        logits, which = outputs[LOGITS], counted(target, teacher)
        wanted = _log_probabilities(teacher[LOGITS], which).exp()
        if target is not None:
            known = self.has_target(target)[:, None, None]
            wanted = torch.where(known, (_ends(target).float() + wanted) / 2, wanted)
        paths = len(logits) // len(wanted)
        which = which.repeat(paths, 1)
        found = _log_probabilities(logits, which).where(which[..., None], 0.0)
        losses = -(wanted.repeat(paths, 1, 1) * found).sum(1).mean(-1)
        return losses.view(paths, len(wanted))

    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        """1 where start and end are right, 1/2 where one of them is."""
        found = _ends(self.answers(outputs, target))
        right = (found & _ends(target)).any(1).float().mean(-1)
        return torch.where(self.has_target(target), right, 0.0)

    def answers(self, outputs: Outputs, like: Tensor) -> Tensor:
        """The likeliest start, and the likeliest end from there on; of no answer both are first."""
        which = like != NO_TOKEN
        start, end = _log_probabilities(outputs[LOGITS], which).unbind(-1)
        places = torch.arange(like.shape[1], device=like.device)
        first = start.argmax(1, keepdim=True)
        before = (places < first) | ((first == 0) & (places > 0))
        last = end.masked_fill(before, -torch.inf).argmax(1, keepdim=True)
        codes = START * (places == first) + END * (places == last)
        return torch.where(which, OTHER + codes, NO_TOKEN)

    def _label_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        which = target != NO_TOKEN
        found = _log_probabilities(logits, which).where(_ends(target), 0.0)
        return torch.where(self.has_target(target), -found.sum(1).mean(-1), 0.0)


def _log_probabilities(logits: Tensor, which: Tensor) -> Tensor:
    """Of start and end among some tokens of a row; minus infinity at all others.

    [B, S, 2] and [B, S] bool -> [B, S, 2].
    """
    return logits.masked_fill(~which[..., None], -torch.inf).log_softmax(1)


def _ends(target: Tensor) -> Tensor:
    """Which token is an answer's start, and which its end: codes [B, S] -> [B, S, 2] bool."""
    codes = target.clamp_min(OTHER)
    ends = torch.stack([codes & START, codes & END], -1) > 0
    whole = ends.any(1).all(-1)
    first = torch.zeros_like(ends)
    first[:, 0] = True
    return torch.where(whole[:, None, None], ends, first)
