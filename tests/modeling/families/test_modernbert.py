"""ModernBERT against transformers, and through the whole export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from modeling.families import checks
from modeling.families.harness import assert_same, random_pair
from transformers import ModernBertConfig

from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.families.modernbert import within
from trbert_deploy.modeling.layouts import RowGroup

SPECIAL: dict[str, Any] = {
    f"{name}_token_id": index for index, name in enumerate(("pad", "bos", "eos", "cls", "sep"))
}
#: Rows of up to 60 tokens, which see 8 on each side in local layers.
SMALL: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 60, "local_attention": 16, **SPECIAL,
}  # fmt: skip
BIASES = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")
ODD_SHAPES = [[1], [2], [7, 7], [60], [60, 1, 33], [5, 3, 5, 2]]


@pytest.mark.parametrize("lengths", ODD_SHAPES, ids=str)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_is_transformers(lengths: list[int], pooling: str) -> None:
    assert_same(*random_pair(ModernBertConfig(**SMALL, classifier_pooling=pooling)), lengths)
