"""MPNet (Song et al. 2020)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.blocks.attention import Attention
from trbert_deploy.modeling.blocks.embeddings import Embeddings
from trbert_deploy.modeling.blocks.encoder import Encoder, EncoderLayer
from trbert_deploy.modeling.blocks.feed_forward import FeedForward
from trbert_deploy.modeling.families.bert import bert_config, bert_spec
from trbert_deploy.modeling.families.family import BERT_LAYER, require
from trbert_deploy.modeling.families.roberta import Roberta
from trbert_deploy.modeling.layouts.layout import RowGroup, ScoreBias
from trbert_deploy.tasks.multiple_choice import MultipleChoice

#: Padding's id, from which positions count whatever the configuration says.
PAD = 1
#: Relative positions fall into so many buckets, however many rows their table has.
BUCKETS = 32
#: From this distance on all share one bucket.
MAX_DISTANCE = 128


class MPNet(Roberta):
    """RoBERTa without token types, with a bias for the relative position of query and key."""

    model_types = ("mpnet",)
    class_prefix = "MPNet"
    prefix = "mpnet."
    carried = ("positions",)
    task_heads = {
        **Roberta.task_heads,
        MultipleChoice.name: {"pooler": "mpnet.pooler.dense", "classifier": "classifier"},
    }
    layer = BERT_LAYER | {
        "attention.query": "attention.attn.q",
        "attention.key": "attention.attn.k",
        "attention.value": "attention.attn.v",
        "attention.output": "attention.attn.o",
        "attention.norm": "attention.LayerNorm",
    }

    def spec(self, config: Any, task: str, labels: tuple[str, ...]) -> EncoderSpec:
        require(config, "pad_token_id", (PAD,))
        rows = config.relative_attention_num_buckets
        if rows < BUCKETS:
            raise CheckpointError(
                f"relative_attention_num_buckets is {rows}: expected {BUCKETS} at least"
            )
        return bert_spec(
            self.name, config, task, labels, PAD + 1, token_types=0, options={"buckets": rows}
        )

    def hf_config(self, spec: EncoderSpec) -> dict[str, Any]:
        entries = bert_config(spec, PAD + 1)
        del entries["type_vocab_size"]
        return entries | {"relative_attention_num_buckets": spec.options["buckets"]}

    def build(self, spec: EncoderSpec) -> Encoder:
        layers = (
            EncoderLayer(BiasedAttention(spec), FeedForward(spec)) for _ in range(spec.num_layers)
        )
        relative = RelativeBias(spec.options["buckets"], spec.num_heads)
        return Encoder(Embeddings(spec), layers, relative=relative)

    def modules(self, spec: EncoderSpec) -> dict[str, str]:
        table = {"encoder.relative.table": f"{self.prefix}encoder.relative_attention_bias"}
        return super().modules(spec) | table


class RelativeBias(nn.Module):
    """What the scores of a query and a key gain by their relative position, in every layer.

    Args:
        rows: of the table; those behind ``BUCKETS`` are never read.
        num_heads: N.
    """

    bucket: Tensor

    def __init__(self, rows: int, num_heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, num_heads)
        # Looked up: a runtime's logarithm may round to the other side of a bucket's edge.
        distance = torch.arange(-MAX_DISTANCE, MAX_DISTANCE + 1)
        self.register_buffer("bucket", bucket_of(distance), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """positions [B or 1, S] int64 -> bias [B or 1, N, S, S]."""
        distance = positions[:, None, :] - positions[:, :, None]  # key's minus query's
        place = distance.clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE
        of_distance = self.table(self.bucket)  # [2 * MAX_DISTANCE + 1, N]
        return embedding(place, of_distance).permute(0, 3, 1, 2).contiguous()

    def of(self, group: RowGroup) -> Tensor:
        """The bias of rows that attend together, computed for the first layer that asks."""
        return group.once(self, lambda: self(group.positions))


class BiasedAttention(Attention):
    """Self-attention with the encoder's bias for relative positions."""

    def score_bias(
        self, query: Tensor, key: Tensor, relative: nn.Module | None
    ) -> ScoreBias | None:
        assert isinstance(relative, RelativeBias)
        return ScoreBias(relative.of)


def bucket_of(distance: Tensor) -> Tensor:
    """The bucket of key's position minus query's, as T5 has it (Raffel et al. 2020).

    Half of the buckets are for keys behind the query. In each half the first half is for one
    distance each, and the rest grow as its logarithm, up to ``MAX_DISTANCE``.

    Args:
        distance: [...] int64.

    Returns:
        bucket: [...] int64, below ``BUCKETS``.
    """
    half = BUCKETS // 2
    exact = half // 2
    near = distance.abs()
    growth = torch.log(near.clamp_min(1).float() / exact) / math.log(MAX_DISTANCE / exact)
    far = (exact + (growth * (half - exact)).long()).clamp_max(half - 1)
    return (distance > 0).long() * half + torch.where(near < exact, near, far)
