"""BERT (Devlin et al. 2019)."""

from __future__ import annotations

from typing import Any

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.blocks.activations import require_activation
from trbert_deploy.modeling.families.family import BERT_MASKS, TOKEN_HEADS, Family, require
from trbert_deploy.tasks.fill_mask import FillMask


class Bert(Family):
    """Learned positions, two token types, normalization behind every sum."""

    model_types = ("bert",)
    class_prefix = "Bert"
    prefix = "bert."
    head = {"pooler": "bert.pooler.dense", "classifier": "classifier"}
    task_heads = {**TOKEN_HEADS, FillMask.name: BERT_MASKS}

    def spec(self, config: Any, task: str, labels: tuple[str, ...]) -> EncoderSpec:
        return bert_spec(self.name, config, task, labels)

    def hf_config(self, spec: EncoderSpec) -> dict[str, Any]:
        return bert_config(spec)


def bert_spec(
    family: str,
    config: Any,
    task: str,
    labels: tuple[str, ...],
    position_offset: int = 0,
    **changes: Any,
) -> EncoderSpec:
    """The description of a configuration with BERT's entries.

    Args:
        position_offset: rows of the position table that no token has.
        changes: entries of the spec that differ.

    Raises:
        CheckpointError: a decoder, other positions than learned ones, or an unknown activation.
    """
    if getattr(config, "is_decoder", False):
        raise CheckpointError(f"this {family} is a decoder: expected an encoder (is_decoder false)")
    require(config, "position_embedding_type", ("absolute", None))
    values = {
        "family": family,
        "task": task,
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "ffn_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_positions": config.max_position_embeddings - position_offset,
        "token_types": getattr(config, "type_vocab_size", 0),
        "layer_norm_eps": config.layer_norm_eps,
        "activation": require_activation(config.hidden_act),
        "dropout": config.hidden_dropout_prob,
        "pad_token_id": config.pad_token_id or 0,
        "labels": labels,
    }
    return EncoderSpec(**{**values, **changes})


def bert_config(spec: EncoderSpec, position_offset: int = 0) -> dict[str, Any]:
    """The entries of config.json that ``bert_spec`` reads."""
    return {
        "num_hidden_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": spec.ffn_size,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_positions + position_offset,
        "type_vocab_size": spec.token_types,
        "layer_norm_eps": spec.layer_norm_eps,
        "hidden_act": spec.activation,
        "hidden_dropout_prob": spec.dropout,
        "pad_token_id": spec.pad_token_id,
    }
