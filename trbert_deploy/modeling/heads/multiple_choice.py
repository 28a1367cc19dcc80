"""The head for a score of a text and one of its choices."""

from __future__ import annotations

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.heads.text_ranking import TextRankingHead
from trbert_deploy.tasks.multiple_choice import MultipleChoice


class MultipleChoiceHead(TextRankingHead):
    """That of text ranking: each choice learns for itself whether it is the right one.

    A logit is then the logarithm of the odds, so that a softmax over the choices of a question, of
    which one is right, is their probability. Teachers are followed by raw logits: those that
    learned by a softmax are known but for what they have in common.
    """

    task = MultipleChoice.name

    def is_raw(self, spec: EncoderSpec) -> bool:
        return True
