"""The encoder in PyTorch, in steps of half a layer, so that a cut can stand anywhere.

Every module works on the last dimension alone, so that the same weights run on padded
tensors [B, S, H] (export, reference) and on packed tokens [T, H] (training). Only attention
needs to know which tokens belong together: it asks a layout (see layouts/).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.blocks.attention import Attention
from trbert_deploy.modeling.blocks.embeddings import Embeddings
from trbert_deploy.modeling.blocks.feed_forward import FeedForward
from trbert_deploy.modeling.layouts.layout import Layout


class EncoderLayer(nn.Module):
    """One encoder layer: attention, then feed-forward."""

    def __init__(self, attention: Attention, feed_forward: FeedForward) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward


class Encoder(nn.Module):
    """Embeddings and L layers, runnable from any half layer to any other.

    Args:
        relative: what the attention of all layers shares, such as a table of relative positions.
        final_norm: normalizes the last states, where layers normalize what comes in.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        layers: Iterable[EncoderLayer],
        *,
        relative: nn.Module | None = None,
        final_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.layers = nn.ModuleList(layers)
        self.relative = relative
        self.final_norm = final_norm

    @classmethod
    def post_norm(cls, spec: EncoderSpec, embeddings: Embeddings | None = None) -> Encoder:
        """The encoder of BERT: learned positions, normalization behind every sum."""
        layers = (EncoderLayer(Attention(spec), FeedForward(spec)) for _ in range(spec.num_layers))
        return cls(embeddings or Embeddings(spec), layers)

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None, layout: Layout) -> Tensor:
        """Embeddings of whole rows: int64 [...] each -> hidden [..., H]."""
        return self.embeddings(input_ids, token_type_ids, layout.positions_of(input_ids))

    def run_steps(self, hidden: Tensor, layout: Layout, start: int, stop: int) -> Tensor:
        """Run half layers ``start`` to ``stop`` (2l: attention of layer l, 2l+1: its feed-forward).

        Args:
            hidden: [..., H].
            layout: which tokens attend to each other, and where they stood.

        Returns:
            hidden: [..., H]; behind the last half layer with the final normalization.
        """
        for step in range(start, stop):
            layer: Any = self.layers[step // 2]
            if step % 2:
                hidden = layer.feed_forward(hidden)
            else:
                hidden = layer.attention(hidden, layout, self.relative)
        if self.final_norm is not None and start < stop == 2 * len(self.layers):
            hidden = self.final_norm(hidden)
        return hidden
