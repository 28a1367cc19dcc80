"""The encoder in PyTorch, in steps of half a layer, so that a cut can stand anywhere.

Every module works on the last dimension alone, so that the same weights run on padded
tensors [B, S, H] (export, reference) and on packed tokens [T, H] (training). Only attention
needs to know which tokens belong together: it asks a layout (see layouts.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.layouts import Layout

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class Embeddings(nn.Module):
    """Token, position and token-type embeddings, normalized."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.token = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.position = nn.Embedding(spec.max_positions, spec.hidden_size)
        self.token_type = nn.Embedding(spec.token_types, spec.hidden_size)
        self.norm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, positions: Tensor) -> Tensor:
        """Embed tokens.

        Args:
            input_ids, token_type_ids: [...] int64.
            positions: int64, broadcastable to [...].

        Returns:
            hidden: [..., H].
        """
        hidden = self.token(input_ids) + self.token_type(token_type_ids) + self.position(positions)
        return self.dropout(self.norm(hidden))


class Attention(nn.Module):
    """Self-attention with its residual and normalization: the first half of a layer."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        width = spec.hidden_size
        self.num_heads = spec.num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=spec.layer_norm_eps)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """hidden [..., H] -> hidden [..., H]."""
        context = layout.attend(
            self.query(hidden), self.key(hidden), self.value(hidden), self.num_heads
        )
        return self.norm(hidden + self.dropout(self.output(context)))


class FeedForward(nn.Module):
    """The feed-forward network with its residual and normalization: a layer's second half."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.up = nn.Linear(spec.hidden_size, spec.ffn_size)
        self.activation = ACTIVATIONS[spec.activation]()
        self.down = nn.Linear(spec.ffn_size, spec.hidden_size)
        self.norm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., H] -> hidden [..., H]."""
        change = self.down(self.activation(self.up(hidden)))
        return self.norm(hidden + self.dropout(change))


class EncoderLayer(nn.Module):
    """One encoder layer: attention, then feed-forward."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.attention = Attention(spec)
        self.feed_forward = FeedForward(spec)


class Encoder(nn.Module):
    """Embeddings and L layers, runnable from any half layer to any other."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.embeddings = Embeddings(spec)
        self.layers = nn.ModuleList(EncoderLayer(spec) for _ in range(spec.num_layers))

    def run_steps(self, hidden: Tensor, layout: Layout, start: int, stop: int) -> Tensor:
        """Run half layers ``start`` to ``stop`` (2l: attention of layer l, 2l+1: its feed-forward).

        Args:
            hidden: [..., H].
            layout: which tokens attend to each other.

        Returns:
            hidden: [..., H].
        """
        for step in range(start, stop):
            layer: Any = self.layers[step // 2]
            hidden = layer.feed_forward(hidden) if step % 2 else layer.attention(hidden, layout)
        return hidden


class ClassificationHead(nn.Module):
    """BERT's sequence classifier: dense and tanh over the first token, then a linear layer."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.pooler = nn.Linear(spec.hidden_size, spec.hidden_size)
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Linear(spec.hidden_size, len(spec.labels))

    def forward(self, first: Tensor) -> Tensor:
        """first-token states [B, H] -> logits [B, C] float32."""
        pooled = torch.tanh(self.pooler(first))
        return self.classifier(self.dropout(pooled)).float()


class Policy(nn.Module):
    """Scores every token at a cut (TR-BERT, section 3.2): Linear(H, 32), GELU, Linear(32, 1).

    Runs in float32 at every precision: a rounded score would keep other tokens.
    """

    WIDTH = 32

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, self.WIDTH)
        self.score = nn.Linear(self.WIDTH, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., H] -> keep logit [...] float32; its sigmoid is the keep probability."""
        with torch.autocast(hidden.device.type, enabled=False):
            inner = nn.functional.gelu(self.dense(hidden.float()))
            return self.score(inner).squeeze(-1)
