"""DistilBERT (Sanh et al. 2019)."""

from __future__ import annotations

from typing import Any

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.blocks.activations import require_activation
from trbert_deploy.modeling.families.family import TOKEN_HEADS, Family
from trbert_deploy.tasks.fill_mask import FillMask


class DistilBert(Family):
    """BERT without token types, under names of its own.

    A table of sinusoids (``sinusoidal_pos_embds``) is stored as a learned one is.
    """

    model_types = ("distilbert",)
    class_prefix = "DistilBert"
    prefix = "distilbert."
    layer = {
        "attention.query": "attention.q_lin",
        "attention.key": "attention.k_lin",
        "attention.value": "attention.v_lin",
        "attention.output": "attention.out_lin",
        "attention.norm": "sa_layer_norm",
        "feed_forward.up": "ffn.lin1",
        "feed_forward.down": "ffn.lin2",
        "feed_forward.norm": "output_layer_norm",
    }
    layer_prefix = "transformer.layer."
    head = {"pooler": "pre_classifier", "classifier": "classifier"}
    task_heads = {
        **TOKEN_HEADS,
        FillMask.name: {
            "dense": "vocab_transform",
            "norm": "vocab_layer_norm",
            "decoder": "vocab_projector",
        },
    }

    def spec(self, config: Any, task: str, labels: tuple[str, ...]) -> EncoderSpec:
        if getattr(config, "is_decoder", False):
            raise CheckpointError(
                f"this {self.name} is a decoder: expected an encoder (is_decoder false)"
            )
        return EncoderSpec(
            family=self.name,
            task=task,
            num_layers=config.n_layers,
            hidden_size=config.dim,
            num_heads=config.n_heads,
            ffn_size=config.hidden_dim,
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
            token_types=0,
            layer_norm_eps=1e-12,  # no configuration says otherwise
            activation=require_activation(config.activation, "activation"),
            dropout=config.dropout,
            pad_token_id=config.pad_token_id or 0,
            labels=labels,
            head={"activation": "relu"},
        )

    def hf_config(self, spec: EncoderSpec) -> dict[str, Any]:
        return {
            "n_layers": spec.num_layers,
            "dim": spec.hidden_size,
            "n_heads": spec.num_heads,
            "hidden_dim": spec.ffn_size,
            "vocab_size": spec.vocab_size,
            "max_position_embeddings": spec.max_positions,
            "activation": spec.activation,
            "dropout": spec.dropout,
            "pad_token_id": spec.pad_token_id,
        }
