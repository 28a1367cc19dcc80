"""Folders of transformers' and sentence-transformers' models with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertPreTrainedModel,
    PreTrainedModel,
)

from trbert_deploy.files import write_json
from trbert_deploy.modeling.checkpoints.sentence_transformers import modules_files

BERT = {
    "vocab_size": 256,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}

_COMMON: dict[str, Any] = {
    "vocab_size": 220, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 66,
}  # fmt: skip
#: Family -> its configuration's entries; the tokenizer's padding token is 0.
SMALL_FAMILIES: dict[str, dict[str, Any]] = {
    "bert": _COMMON,
    "roberta": {**_COMMON, "pad_token_id": 0, "type_vocab_size": 1},
    "xlm-roberta": {**_COMMON, "pad_token_id": 0, "type_vocab_size": 1},
    "camembert": {**_COMMON, "pad_token_id": 0, "type_vocab_size": 1},
    "distilbert": {
        "vocab_size": 220, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
        "max_position_embeddings": 64,
    },
    "electra": {**_COMMON, "embedding_size": 16},
    "mpnet": {**_COMMON, "pad_token_id": 1},
    "modernbert": {
        **_COMMON, "num_hidden_layers": 3, "local_attention": 8, "pad_token_id": 0,
        "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3,
    },
    "deberta-v2": {
        **_COMMON, "relative_attention": True, "position_buckets": 8, "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "type_vocab_size": 0,
        "position_biased_input": False, "max_relative_positions": -1, "pad_token_id": 0,
    },
}  # fmt: skip


def write_scaled(model: PreTrainedModel, factor: float, path: Path, tokenizer_dir: Path) -> Path:
    """A folder of a model, its weights (no biases, no norms) so many times as large."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor if parameter.ndim > 1 else 1.0)
    model.save_pretrained(path)
    shutil.copytree(tokenizer_dir, path, dirs_exist_ok=True)
    return path


def family_folder(path: Path, tokenizer_dir: Path, family: str, labels: tuple[str, ...]) -> Path:
    """A small fine-tuned classifier of any family, with random weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, **SMALL_FAMILIES[family],
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config).eval()
    return write_scaled(model, 1.0, path, tokenizer_dir)


def deeper_folder(
    path: Path, tokenizer_dir: Path, kind: type[BertPreTrainedModel] = BertModel
) -> Path:
    """A BERT of four layers whose weights are large, so that states tell tokens apart.

    Args:
        kind: of its head.
    """
    torch.manual_seed(0)
    model = kind(BertConfig(**BERT | {"num_hidden_layers": 4}))
    return write_scaled(model, 4.0, path, tokenizer_dir)


def classifier_folder(
    path: Path,
    tokenizer_dir: Path,
    labels: tuple[str, ...],
    kind: type[BertPreTrainedModel] = BertForSequenceClassification,
    **entries: Any,
) -> Path:
    """A BERT whose answers lie far apart.

    Args:
        kind: of its head.
        entries: of config.json.
    """
    names = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    torch.manual_seed(0)
    model = kind(BertConfig(**BERT, **names, **entries)).eval()
    return write_scaled(model, 16.0, path, tokenizer_dir)


def sentence_folder(path: Path, tokenizer_dir: Path, **answers: Any) -> Path:
    """A BERT as sentence-transformers reads it.

    Args:
        answers: as ``EncoderSpec.answers``.
    """
    classifier_folder(path, tokenizer_dir, ("LABEL_0",), BertModel)
    made = modules_files({"pooling": "mean", "normalize": True, **answers}, 32, 64)
    for name, content in made.items():
        (path / name).parent.mkdir(exist_ok=True)
        write_json(path / name, content)
    return path
