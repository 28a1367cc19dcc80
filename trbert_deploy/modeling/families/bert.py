"""Hugging Face BERT: its configuration and parameter names, and nowhere else."""

from __future__ import annotations

from typing import Any

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import CheckpointError

_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward.norm": "output.LayerNorm",
}


def encoder_spec(config: Any, labels: tuple[str, ...]) -> EncoderSpec:
    """Our description of a ``transformers.BertConfig``.

    Raises:
        CheckpointError: a variant of BERT that the encoder does not compute.
    """
    if getattr(config, "is_decoder", False):
        raise CheckpointError("this BERT is a decoder: expected an encoder (is_decoder false)")
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise CheckpointError(f"position_embedding_type is {positions!r}: expected 'absolute'")
    if config.hidden_act not in ("gelu", "relu"):
        raise CheckpointError(f"hidden_act is {config.hidden_act!r}: expected 'gelu' or 'relu'")
    return EncoderSpec(
        family="bert",
        task="sequence-classification",
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        ffn_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        token_types=config.type_vocab_size,
        layer_norm_eps=config.layer_norm_eps,
        activation=config.hidden_act,
        dropout=config.hidden_dropout_prob,
        pad_token_id=config.pad_token_id or 0,
        labels=labels,
    )


def parameter_names(num_layers: int) -> dict[str, str]:
    """Our parameter names -> those of ``BertForSequenceClassification``."""
    modules = {
        "encoder.embeddings.norm": "bert.embeddings.LayerNorm",
        "head.pooler": "bert.pooler.dense",
        "head.classifier": "classifier",
    }
    for layer in range(num_layers):
        for ours, theirs in _LAYER.items():
            modules[f"encoder.layers.{layer}.{ours}"] = f"bert.encoder.layer.{layer}.{theirs}"
    names = {
        "encoder.embeddings.token.weight": "bert.embeddings.word_embeddings.weight",
        "encoder.embeddings.position.weight": "bert.embeddings.position_embeddings.weight",
        "encoder.embeddings.token_type.weight": "bert.embeddings.token_type_embeddings.weight",
    }
    for ours, theirs in modules.items():
        for kind in ("weight", "bias"):
            names[f"{ours}.{kind}"] = f"{theirs}.{kind}"
    return names


def hf_config(spec: EncoderSpec) -> dict[str, Any]:
    """The config.json that makes transformers load our checkpoint as the dense model."""
    return {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "num_hidden_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": spec.ffn_size,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_positions,
        "type_vocab_size": spec.token_types,
        "layer_norm_eps": spec.layer_norm_eps,
        "hidden_act": spec.activation,
        "hidden_dropout_prob": spec.dropout,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": spec.pad_token_id,
        "id2label": {str(index): label for index, label in enumerate(spec.labels)},
        "label2id": {label: index for index, label in enumerate(spec.labels)},
    }


def encoder_parameters(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a bare ``BertModel`` under the names of ``BertForSequenceClassification``."""
    return {f"bert.{name}": tensor for name, tensor in state.items()}
