"""DeBERTa, versions 2 and 3 (He et al. 2021): scores of content and of relative positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.blocks.activations import require_activation
from trbert_deploy.modeling.blocks.attention import Attention
from trbert_deploy.modeling.blocks.embeddings import Embeddings
from trbert_deploy.modeling.blocks.encoder import Encoder, EncoderLayer
from trbert_deploy.modeling.blocks.feed_forward import FeedForward
from trbert_deploy.modeling.families.bert import bert_config, bert_spec
from trbert_deploy.modeling.families.family import (
    BERT_LAYER,
    BERT_MASKS,
    TOKEN_HEADS,
    Family,
    require,
)
from trbert_deploy.modeling.layouts.layout import RowGroup, ScoreBias
from trbert_deploy.tasks.fill_mask import FillMask

#: What adds to a score: the query with the relative position, and the key with it.
C2P, P2C = "c2p", "p2c"
#: Modules of the head for masked words as DeBERTa's authors have it: theirs here -> theirs there.
AUTHORS_MASKS = {
    "cls.predictions.transform": "lm_predictions.lm_head",
    "cls.predictions": "lm_predictions.lm_head",
}


class DebertaV2(Family):
    """BERT whose queries and keys meet relative positions, too.

    ``spec.options`` has the entries of config.json that say how, under their names there.
    """

    model_types = ("deberta-v2",)
    class_prefix = "DebertaV2"
    prefix = "deberta."
    carried = ("positions",)
    layer = BERT_LAYER | {
        "attention.query": "attention.self.query_proj",
        "attention.key": "attention.self.key_proj",
        "attention.value": "attention.self.value_proj",
        "attention.relative_query": "attention.self.pos_query_proj",
        "attention.relative_key": "attention.self.pos_key_proj",
    }
    head = {"pooler": "pooler.dense", "classifier": "classifier"}
    task_heads = {**TOKEN_HEADS, FillMask.name: BERT_MASKS}

    def spec(self, config: Any, task: str, labels: tuple[str, ...]) -> EncoderSpec:
        width = config.hidden_size
        head_width = width // config.num_attention_heads
        require(config, "conv_kernel_size", (0,), default=0)
        require(config, "talking_head", (False,), default=False)
        require(config, "attention_head_size", (head_width,), default=head_width)
        require(config, "pooler_hidden_size", (width,), default=width)
        options = _options(config)
        keys = 2 * _span(options) * len(options["pos_att_type"])
        return bert_spec(
            self.name,
            config,
            task,
            labels,
            embedding_size=getattr(config, "embedding_size", width),
            relative_keys=keys if options["relative_attention"] else 0,
            options=options,
            head={"activation": require_activation(config.pooler_hidden_act, "pooler_hidden_act")},
        )

    def hf_config(self, spec: EncoderSpec) -> dict[str, Any]:
        entries = {
            "embedding_size": spec.embedding_size,
            "pooler_hidden_act": spec.head["activation"],
        }
        return bert_config(spec) | entries | dict(spec.options)

    def build(self, spec: EncoderSpec) -> Encoder:
        biased = spec.options["position_biased_input"]
        embeddings = Embeddings(spec, positions=biased, projection="before")
        if embeddings.projection is not None:
            embeddings.projection = nn.Linear(spec.embedding_size, spec.hidden_size, bias=False)
        layers = (
            EncoderLayer(DisentangledAttention(spec), FeedForward(spec))
            for _ in range(spec.num_layers)
        )
        relative = RelativePositions(spec) if spec.options["relative_attention"] else None
        return Encoder(embeddings, layers, relative=relative)

    def modules(self, spec: EncoderSpec) -> dict[str, str]:
        names = super().modules(spec)
        if not spec.options["position_biased_input"]:
            del names["encoder.embeddings.position"]
        if spec.options["relative_attention"]:
            names["encoder.relative.table"] = f"{self.prefix}encoder.rel_embeddings"
        if spec.options["norm_rel_ebd"] == "layer_norm":
            names["encoder.relative.norm"] = f"{self.prefix}encoder.LayerNorm"
        if not spec.options.get("legacy", True):
            for ours, theirs in names.items():
                for before, after in AUTHORS_MASKS.items():
                    theirs = theirs.replace(before, after)
                names[ours] = theirs
        return names

    def is_computed(self, name: str) -> bool:
        # transformers leaves these two alone as well, where they are not in ``modules``.
        unread = ("embeddings.position_embeddings.", "encoder.LayerNorm.")
        return super().is_computed(name) and not name.startswith(unread)


class RelativePositions(nn.Module):
    """The table of relative positions, and which row of it two tokens have.

    R rows, twice the span: the query's position minus the key's, or the bucket of it, plus the
    span, and within the table.
    """

    row_of: Tensor

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        options = spec.options
        span, self.reach = _span(options), options["max_relative_positions"]
        self.table = nn.Embedding(2 * span, spec.hidden_size)
        normed = options["norm_rel_ebd"] == "layer_norm"
        self.norm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps) if normed else None
        # Looked up: a runtime's logarithm may round to the other side of a bucket's edge.
        distance = torch.arange(-self.reach, self.reach + 1)
        if options["position_buckets"] > 0:
            distance = bucket_of(distance, span, self.reach)
        rows = (distance + span).clamp(0, 2 * span - 1)
        self.register_buffer("row_of", rows, persistent=False)

    def forward(self) -> Tensor:
        """The table [1, R, H]; of two dimensions, graphs would want other weights than states."""
        table: Tensor = self.table.weight[None]
        return table if self.norm is None else self.norm(table)

    def rows(self, positions: Tensor) -> Tensor:
        """positions [B or 1, S] int64 -> rows of the table [B or 1, S, S] int64."""
        distance = positions[:, :, None] - positions[:, None, :]  # query's minus key's
        place = distance.clamp(-self.reach, self.reach) + self.reach
        return self.row_of.index_select(0, place.flatten()).view_as(place)

    def meetings(self, group: RowGroup, batch: int, kind: str) -> Tensor:
        """Where a query or a key of row b stands with a relative position: [B * S * S] int64.

        Args:
            batch: B.
            kind: ``C2P`` for the query that asks, ``P2C`` for the key that is asked.

        Returns:
            Indices into products of B * S tokens with R relative positions, of each pair of
            tokens (b, query, key); computed for the first layer that asks.
        """

        def compute() -> Tensor:
            rows = group.once((self, "rows"), lambda: self.rows(group.positions))
            length = rows.shape[-1]
            token = torch.arange(batch * length, device=rows.device).view(batch, length)
            token = token[:, :, None] if kind == C2P else token[:, None, :]
            return (token * len(self.table.weight) + rows).flatten()

        return group.once((self, kind), compute)


class DisentangledAttention(Attention):
    """Self-attention to which products with relative positions are added.

    With ``share_att_key`` the projections of the states are those of relative positions, too.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        width, options = spec.hidden_size, spec.options
        self.kinds: list[str] = options["pos_att_type"]
        # Every kind makes scores larger: queries are scaled, the rest stays as it is everywhere.
        self.scale = (1 + len(self.kinds)) ** -0.5
        self.query = ScaledLinear(width, width, self.scale)
        own = options["relative_attention"] and not options["share_att_key"]
        self.relative_query = (
            ScaledLinear(width, width, self.scale) if own and P2C in self.kinds else None
        )
        self.relative_key = nn.Linear(width, width) if own and C2P in self.kinds else None

    def score_bias(
        self, query: Tensor, key: Tensor, relative: nn.Module | None
    ) -> ScoreBias | None:
        if relative is None or not self.kinds:
            return None
        assert isinstance(relative, RelativePositions)
        table = self.dropout(relative())
        # Kind -> relative positions, projected: [1, R, H].
        sides: dict[str, Tensor] = {}
        if C2P in self.kinds:
            sides[C2P] = (self.relative_key or self.key)(table)
        if P2C in self.kinds:
            sides[P2C] = (self.relative_query or self.query)(table)

        def compute(group: RowGroup, *states: Tensor) -> Tensor:
            batch, length, _ = states[0].shape
            total: Tensor | None = None
            for (kind, positions), tokens in zip(sides.items(), states, strict=True):
                met = relative.meetings(group, batch, kind)
                part = self._products(tokens, positions).index_select(0, met)
                total = part if total is None else total + part
            assert total is not None
            scores = total.unflatten(0, (batch, length, length))  # [B, S, S, N]
            return scores.permute(0, 3, 1, 2).contiguous()

        content = {C2P: query, P2C: key}
        return ScoreBias(compute, tuple(content[kind] for kind in sides))

    def _products(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Tokens [B, S, H] and relative positions [1, R, H] -> scaled products [B * S * R, N].

        A layout may compute attention in another type than the layers around it: tokens have it.

        The heads come last, so that runtimes copy them together: gathering head by head, by
        indices [B, N, S, S], takes OpenVINO three times as long.
        """
        split = (self.num_heads, -1)
        tokens = tokens.flatten(0, 1).unflatten(-1, split).transpose(0, 1)  # [N, B * S, D]
        keys = positions[0].to(tokens.dtype).unflatten(-1, split).permute(1, 2, 0)  # [N, D, R]
        scale = keys.shape[1] ** -0.5
        return (tokens @ (keys * scale)).permute(1, 2, 0).flatten(0, 1)


class ScaledLinear(nn.Linear):
    """A linear layer whose result is multiplied by a number."""

    def __init__(self, inputs: int, outputs: int, scale: float) -> None:
        super().__init__(inputs, outputs)
        self.scale = scale

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states) * self.scale


def bucket_of(distance: Tensor, buckets: int, farthest: int) -> Tensor:
    """The bucket of a distance, with its sign.

    Half of the buckets are for one distance each, and the rest grow as its logarithm, up to the
    distance before ``farthest``.

    Args:
        distance: [...] int64.

    Returns:
        bucket: [...] int64.
    """
    half = buckets // 2
    near = distance.abs()
    growth = torch.log(near.clamp_min(half) / half) / torch.log(torch.tensor((farthest - 1) / half))
    far = torch.ceil(growth * (half - 1)).long() + half
    return torch.where(near <= half, distance, far * distance.sign())


def _options(config: Any) -> dict[str, Any]:
    """The entries of a configuration that ``EncoderSpec.options`` keeps.

    Raises:
        CheckpointError: an entry is none of those that are computed.
    """
    kinds = list(config.pos_att_type or ())
    if set(kinds) - {C2P, P2C}:
        raise CheckpointError(f"pos_att_type is {kinds}: expected {C2P}, {P2C}, both or none")
    options = {
        "relative_attention": config.relative_attention,
        "pos_att_type": [kind for kind in (C2P, P2C) if kind in kinds],
        "position_biased_input": config.position_biased_input,
        "share_att_key": False,
        "norm_rel_ebd": "none",
        "position_buckets": -1,
        "max_relative_positions": -1,
    }
    if not getattr(config, "legacy", True):
        options["legacy"] = False
    if not config.relative_attention:
        return options
    require(config, "norm_rel_ebd", ("none", "layer_norm"), default="none")
    farthest = config.max_relative_positions
    if farthest < 1:
        farthest = config.max_position_embeddings
    buckets = getattr(config, "position_buckets", -1)
    if buckets > 0 and (buckets % 2 or buckets >= 2 * (farthest - 1)):
        raise CheckpointError(
            f"position_buckets is {buckets} with max_relative_positions {farthest}: expected an "
            f"even number below {2 * (farthest - 1)}, or -1 for none"
        )
    return options | {
        "share_att_key": getattr(config, "share_att_key", False),
        "norm_rel_ebd": getattr(config, "norm_rel_ebd", "none"),
        "position_buckets": buckets if buckets > 0 else -1,
        "max_relative_positions": farthest,
    }


def _span(options: Any) -> int:
    """Half of the rows of the table of relative positions."""
    buckets, farthest = options["position_buckets"], options["max_relative_positions"]
    return int(buckets if buckets > 0 else farthest)
