"""The head for masked words: what masked language models are pretrained with."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.blocks.activations import ACTIVATIONS
from trbert_deploy.modeling.blocks.embeddings import Embeddings
from trbert_deploy.modeling.heads.one_label import OneLabelHead
from trbert_deploy.tasks.fill_mask import TARGET_IDS, FillMask
from trbert_deploy.tasks.text_classification import LOGITS


class FillMaskHead(OneLabelHead):
    """A dense layer, activation and normalization, then the embeddings of words, turned around.

    The decoder has the weights of the token embeddings, and a bias for each word. Where the model
    chooses among some words, only theirs are multiplied with.
    """

    task = FillMask.name

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(FillMask.of(spec).outputs)
        options: dict[str, Any] = dict(spec.head)
        # A prediction head with a normalization is that of texts, too (``TokenLogitsHead``).
        own = options.get("activation") if options.get("norm") else None
        activation = own or options.get("decoder_activation", spec.activation)
        width = spec.embedding_size
        self.dense = nn.Linear(spec.hidden_size, width, bias=options.get("dense_bias", True))
        self.activation = ACTIVATIONS[activation]()
        norm_bias = options.get("norm_bias", True)
        self.norm = nn.LayerNorm(width, eps=spec.layer_norm_eps, bias=norm_bias)
        self.decoder = TiedDecoder(spec.vocab_size, spec.answers[TARGET_IDS])

    @classmethod
    def build(cls, spec: EncoderSpec) -> Self:
        return cls(spec)

    def share(self, embeddings: Embeddings) -> None:
        self.decoder.share(embeddings)

    def each(self, hidden: Tensor) -> dict[str, Tensor]:
        """States [..., H] -> logits [..., C] float32."""
        hidden = self.norm(self.activation(self.dense(hidden)))
        return {LOGITS: self.decoder(hidden).float()}


class TiedDecoder(nn.Module):
    """Multiplies with the embeddings of words; its own is their bias alone.

    Args:
        words: V.
        among: ids of the words that are chosen among; none for all of them.
    """

    among: Tensor

    def __init__(self, words: int, among: list[int]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(words))
        self.register_buffer("among", torch.tensor(among, dtype=torch.int64), persistent=False)
        self._embeddings: tuple[Embeddings, ...] = ()

    def share(self, embeddings: Embeddings) -> None:
        """Take the weights; in a tuple, so that they are no parameters of this module."""
        self._embeddings = (embeddings,)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., E] -> [..., C], or [..., V] of all words."""
        (embeddings,) = self._embeddings
        weight, bias = embeddings.token.weight, self.bias
        if len(self.among):
            return linear(hidden, weight[self.among], bias[self.among])
        # Of two dimensions, so that graphs use the table as it lies, and not a turned copy of it.
        return linear(hidden.flatten(0, -2), weight, bias).unflatten(0, hidden.shape[:-1])
