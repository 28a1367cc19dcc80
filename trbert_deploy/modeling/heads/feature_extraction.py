"""The head for sentence embeddings: the states themselves, gathered."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.heads.tokens import TokensHead
from trbert_deploy.tasks.feature_extraction import EMBEDDING, FeatureExtraction

#: Weight of the cosines between texts beside that of a text's two embeddings. They are squared, and
#: far smaller.
GRAM_WEIGHT = 10.0
#: Of the softmax over a batch's cosines, by which the guide tells what an embedding hangs on.
TEMPERATURE = 0.05


class FeatureExtractionHead(TokensHead):
    """Embeddings [B, H], of any length: what reads them normalizes them.

    There are no labels, so nothing is taught but a teacher's embeddings.
    """

    task = FeatureExtraction.name

    @classmethod
    def build(cls, spec: EncoderSpec) -> Self:
        return cls(FeatureExtraction.of(spec).outputs)

    def each(self, hidden: Tensor) -> dict[str, Tensor]:
        return {EMBEDDING: hidden.float()}

    def loss(
        self, outputs: Outputs, target: Tensor | None, teacher: Outputs | None = None
    ) -> Tensor:
        """1 less the cosine with the teacher's embedding, and the error of cosines between texts.

        Without a teacher: how hard the embedding is to tell from the batch's others, by the
        targets (InfoNCE, van den Oord et al. 2018), for its gradient.
        """
        found = normalize(outputs[EMBEDDING], dim=-1)
        if teacher is None:
            assert target is not None  # a loss without a teacher needs embeddings
            cosines = found @ normalize(target, dim=-1).T / TEMPERATURE
            own = torch.arange(len(found), device=found.device)
            return cross_entropy(cosines, own, reduction="none")
        wanted = normalize(teacher[EMBEDDING], dim=-1)
        return _distance(found, wanted, found)

    def path_loss(self, outputs: Outputs, target: Tensor | None, teacher: Outputs) -> Tensor:
        """As ``loss`` with a teacher; cosines between texts are with the teacher's embeddings."""
        wanted = normalize(teacher[EMBEDDING], dim=-1)
        paths = normalize(outputs[EMBEDDING], dim=-1).unflatten(0, (-1, len(wanted)))
        return torch.stack([_distance(path, wanted, wanted) for path in paths])

    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        """The cosine with an embedding that is wanted, at least 0."""
        found, wanted = normalize(outputs[EMBEDDING], dim=-1), normalize(target, dim=-1)
        return (found * wanted).sum(-1).clamp(0.0, 1.0)

    def has_target(self, target: Tensor) -> Tensor:
        return torch.zeros(len(target), dtype=torch.bool, device=target.device)

    def answers(self, outputs: Outputs, like: Tensor) -> Tensor:
        return outputs[EMBEDDING].detach()

    def targets_or_answers(self, target: Tensor, outputs: Outputs) -> Tensor:
        return self.answers(outputs, target)


def _distance(found: Tensor, wanted: Tensor, others: Tensor) -> Tensor:
    """How far embeddings are from those that are wanted: [B].

    Args:
        found, wanted: [B, H] of length 1.
        others: [B, H], what ``found`` is compared with as ``wanted`` is with itself.
    """
    error = (found @ others.T - wanted @ wanted.T).square().mean(-1)
    return 1.0 - (found * wanted).sum(-1) + GRAM_WEIGHT * error
