"""The head for a label of every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor, nn

from trbert_deploy.config import EncoderSpec
from trbert_deploy.lexicon.columns import VALUES
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.heads.lexicon import LexiconVotes, denoising_losses
from trbert_deploy.modeling.heads.one_label import OneLabelHead
from trbert_deploy.modeling.heads.token_logits import TokenLogitsHead, mean_of
from trbert_deploy.modeling.heads.tokens import Part, in_place
from trbert_deploy.modeling.layouts.layout import RowsLayout
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.tasks.token_classification import TokenClassification

#: In training alone: how wrong the trust in a token's matches is, [B, S, 1].
DENOISING = "denoising"


class TokenClassificationHead(OneLabelHead, TokenLogitsHead):
    """A logit for each label, of which one is right for a token.

    Attributes:
        lexicon: what a lexicon's matches add to the logits, where the model takes one.
    """

    task = TokenClassification.name

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec, TokenClassification.outputs)
        task = TokenClassification.of(spec)
        self.lexicon: LexiconVotes | None = None
        if task.lexicon_tags:
            self.lexicon = LexiconVotes(spec.hidden_size, task.labels_of_matches())

    @classmethod
    def build(cls, spec: EncoderSpec) -> Self:
        return cls(spec)

    @property
    def takes_matches(self) -> bool:
        return self.lexicon is not None

    def take_matches(self, spec: EncoderSpec) -> None:
        labels = TokenClassification.of(spec).labels_of_matches()
        self.lexicon = LexiconVotes(spec.hidden_size, labels)
        self.lexicon.start()

    def each_matched(self, hidden: Tensor, matches: Tensor | None) -> dict[str, Tensor]:
        """States [..., S, H] -> logits [..., S, C] float32; where it is known which matches are
        right, a fourth value of theirs, ``DENOISING``, too.
        """
        values = self.each(hidden)
        if matches is None or self.lexicon is None:
            return values
        votes, trust = self.lexicon(hidden, matches)
        values[LOGITS] = values[LOGITS] + votes
        if matches.shape[-1] > VALUES:
            values[DENOISING] = denoising_losses(trust, matches)
        return values

    @property
    def quick_parameters(self) -> list[nn.Parameter]:
        return [] if self.lexicon is None else [*self.lexicon.parameters()]

    def gathered(self, parts: Sequence[Part], whole: RowsLayout, choices: int) -> dict[str, Tensor]:
        found = super().gathered(parts, whole, choices)
        judged = [part for part in parts if DENOISING in part.values]
        return found | ({DENOISING: in_place(DENOISING, judged, whole, choices)} if judged else {})

    def loss(
        self, outputs: Outputs, target: Tensor | None, teacher: Outputs | None = None
    ) -> Tensor:
        """That of the labels, and how wrong the trust in matches is, the mean over their tokens."""
        loss = super().loss(outputs, target, teacher)
        if DENOISING not in outputs:
            return loss
        wrong = outputs[DENOISING][..., 0]
        return loss + mean_of(wrong, wrong > 0)
