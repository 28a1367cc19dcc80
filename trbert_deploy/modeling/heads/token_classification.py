"""The head for a label of every token."""

from __future__ import annotations

from typing import Self

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.heads.one_label import OneLabelHead
from trbert_deploy.modeling.heads.token_logits import TokenLogitsHead
from trbert_deploy.tasks.token_classification import TokenClassification


class TokenClassificationHead(OneLabelHead, TokenLogitsHead):
    """A logit for each label, of which one is right for a token."""

    task = TokenClassification.name

    @classmethod
    def build(cls, spec: EncoderSpec) -> Self:
        return cls(spec, TokenClassification.outputs)
