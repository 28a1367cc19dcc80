"""ModernBERT (Warner et al. 2024)."""

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
from trbert_deploy.modeling.blocks.rotary import Rotary
from trbert_deploy.modeling.families.family import TOKEN_HEADS, Family, State, require
from trbert_deploy.modeling.layouts.layout import Layout, RowGroup, ScoreBias
from trbert_deploy.tasks.fill_mask import FillMask

GLOBAL, LOCAL = "full_attention", "sliding_attention"
#: Their linear layers that are several of ours, one behind the other.
FUSED = {"attn.Wqkv": 3, "mlp.Wi": 2}
#: Our modules of the head for tokens -> theirs.
TOKEN_HEAD = {"dense": "head.dense", "norm": "head.norm", "classifier": "classifier"}
#: Their name of a text's state -> ours.
POOLING = {"cls": "first", "mean": "mean"}


class ModernBert(Family):
    """Rotary positions, attention to neighbours in most layers, normalization before every sum."""

    model_types = ("modernbert",)
    class_prefix = "ModernBert"
    prefix = "model."
    carried = ("positions",)
    embeddings = {"token": "tok_embeddings", "norm": "norm"}
    layer_prefix = "layers."
    layer = {
        "attention.query": "attn.Wqkv.0",
        "attention.key": "attn.Wqkv.1",
        "attention.value": "attn.Wqkv.2",
        "attention.output": "attn.Wo",
        "attention.norm": "attn_norm",
        "feed_forward.up": "mlp.Wi.0",
        "feed_forward.gate": "mlp.Wi.1",
        "feed_forward.down": "mlp.Wo",
        "feed_forward.norm": "mlp_norm",
    }
    head = {"pooler": "head.dense", "norm": "head.norm", "classifier": "classifier"}
    task_heads = {
        **dict.fromkeys(TOKEN_HEADS, TOKEN_HEAD),
        FillMask.name: {"dense": "head.dense", "norm": "head.norm", "decoder": "decoder"},
    }

    def spec(self, config: Any, task: str, labels: tuple[str, ...]) -> EncoderSpec:
        require(config, "classifier_pooling", POOLING)
        width, heads = config.hidden_size, config.num_attention_heads
        if width % (2 * heads):
            raise CheckpointError(
                f"hidden_size is {width} with {heads} heads: expected an even width of each head"
            )
        return EncoderSpec(
            family=self.name,
            task=task,
            num_layers=config.num_hidden_layers,
            hidden_size=width,
            num_heads=heads,
            ffn_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
            token_types=0,
            layer_norm_eps=config.norm_eps,
            activation=require_activation(config.hidden_activation, "hidden_activation"),
            dropout=config.mlp_dropout,
            pad_token_id=config.pad_token_id or 0,
            labels=labels,
            gated_ffn=True,
            options={
                "layer_types": _layer_types(config),
                "local_attention": config.local_attention,
                "rope_theta": _thetas(config),
                "attention_bias": config.attention_bias,
                "mlp_bias": config.mlp_bias,
                "norm_bias": config.norm_bias,
            },
            head={
                "pooling": POOLING[config.classifier_pooling],
                "activation": require_activation(
                    config.classifier_activation, "classifier_activation"
                ),
                "norm": True,
                "norm_bias": config.norm_bias,
                "dense_bias": config.classifier_bias,
            },
        )

    def hf_config(self, spec: EncoderSpec) -> dict[str, Any]:
        options, head = dict(spec.options), spec.head
        thetas = options.pop("rope_theta")
        (pooling,) = (theirs for theirs, ours in POOLING.items() if ours == head["pooling"])
        return {
            **options,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": theta}
                for kind, theta in thetas.items()
            },
            "num_hidden_layers": spec.num_layers,
            "hidden_size": spec.hidden_size,
            "num_attention_heads": spec.num_heads,
            "intermediate_size": spec.ffn_size,
            "vocab_size": spec.vocab_size,
            "max_position_embeddings": spec.max_positions,
            "norm_eps": spec.layer_norm_eps,
            "hidden_activation": spec.activation,
            "mlp_dropout": spec.dropout,
            "pad_token_id": spec.pad_token_id,
            "classifier_pooling": pooling,
            "classifier_activation": head["activation"],
            "classifier_bias": head["dense_bias"],
        }

    def build(self, spec: EncoderSpec) -> Encoder:
        options = spec.options
        width = spec.hidden_size // spec.num_heads
        rotaries = {kind: Rotary(width, theta) for kind, theta in options["rope_theta"].items()}
        windows = {GLOBAL: None, LOCAL: options["local_attention"] // 2}

        def norm() -> nn.Module:
            return nn.LayerNorm(
                spec.hidden_size, eps=spec.layer_norm_eps, bias=options["norm_bias"]
            )

        def layer(index: int, kind: str) -> EncoderLayer:
            # The embeddings come normalized to the first layer.
            before = norm() if index else nn.Identity()
            bias = options["attention_bias"]
            attention = RotaryAttention(spec, rotaries[kind], windows[kind], before, bias)
            feed_forward = FeedForward(
                spec, linear_bias=options["mlp_bias"], norm_first=True, norm=norm()
            )
            return EncoderLayer(attention, feed_forward)

        return Encoder(
            Embeddings(spec, positions=False, norm=norm()),
            (layer(index, kind) for index, kind in enumerate(options["layer_types"])),
            final_norm=norm(),
        )

    def modules(self, spec: EncoderSpec) -> dict[str, str]:
        return super().modules(spec) | {"encoder.final_norm": f"{self.prefix}final_norm"}

    def load(self, state: State, spec: EncoderSpec) -> dict[str, Tensor]:
        parts = {}
        for name, tensor in state.items():
            module, _, kind = name.rpartition(".")
            count = FUSED.get(".".join(module.split(".")[-2:]))
            if count is None:
                parts[name] = tensor
            else:
                pieces = enumerate(tensor.chunk(count))
                parts |= {f"{module}.{index}.{kind}": piece for index, piece in pieces}
        return super().load(parts, spec)

    def save(self, state: State, spec: EncoderSpec) -> dict[str, Tensor]:
        saved = super().save(state, spec)
        for layer in range(spec.num_layers):
            for fused, count in FUSED.items():
                module = f"{self.prefix}{self.layer_prefix}{layer}.{fused}"
                for kind in ("weight", "bias"):
                    if f"{module}.0.{kind}" in saved:
                        pieces = [saved.pop(f"{module}.{part}.{kind}") for part in range(count)]
                        saved[f"{module}.{kind}"] = torch.cat(pieces)
        return saved


class RotaryAttention(Attention):
    """Self-attention with rotary positions, of all tokens or of neighbours.

    Args:
        rotary: turns queries and keys; layers of one kind share it.
        window: how far a token sees, on each side, in the row as it was given; None for all of it.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        rotary: Rotary,
        window: int | None,
        norm: nn.Module,
        linear_bias: bool,
    ) -> None:
        super().__init__(spec, linear_bias=linear_bias, norm_first=True, norm=norm)
        self.rotary = rotary
        self.window = window

    def rotated(self, states: Tensor, layout: Layout) -> Tensor:
        rotated: Tensor = self.rotary(states, layout)
        return rotated

    def score_bias(
        self, query: Tensor, key: Tensor, relative: nn.Module | None
    ) -> ScoreBias | None:
        window = self.window
        if window is None:
            return None
        return ScoreBias(
            lambda group: group.once(("within", window), lambda: within(group, window))
        )


def within(group: RowGroup, window: int) -> Tensor:
    """Whether the tokens of a row stood no farther apart than ``window``: [B or 1, 1, S, S]."""
    positions = group.positions
    distance = positions[:, None, :, None] - positions[:, None, None, :]
    return distance.abs() <= window


def _layer_types(config: Any) -> list[str]:
    """How each layer attends."""
    kinds = list(config.layer_types)
    unknown = sorted(set(kinds) - {GLOBAL, LOCAL})
    if unknown:
        raise CheckpointError(f"layer_types has {unknown[0]!r}: expected {GLOBAL!r} or {LOCAL!r}")
    if len(kinds) != config.num_hidden_layers:
        raise CheckpointError(
            f"layer_types names {len(kinds)} layers: expected {config.num_hidden_layers}"
        )
    return kinds


def _thetas(config: Any) -> dict[str, float]:
    """Kind of a layer -> base of its wave lengths."""
    thetas: dict[str, float] = {}
    for kind in (GLOBAL, LOCAL):
        parameters = config.rope_parameters[kind]
        if parameters["rope_type"] != "default":
            raise CheckpointError(
                f"rope_type of {kind} is {parameters['rope_type']!r}: expected 'default'"
            )
        # Older configurations leave the local one open where it is the global one.
        thetas[kind] = parameters["rope_theta"] or thetas[GLOBAL]
    return thetas
