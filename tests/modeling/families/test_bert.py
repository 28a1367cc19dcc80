"""BERT, and the models of its shape, against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from modeling.families.harness import assert_same, random_pair
from transformers import BertConfig, CamembertConfig, RobertaConfig, XLMRobertaConfig

from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.families.registry import family_of

SMALL: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40,
}  # fmt: skip
ODD_SHAPES = [[1], [2], [7, 7], [40], [40, 1, 13], [5, 3, 5, 2]]
ROBERTAS = [RobertaConfig, XLMRobertaConfig, CamembertConfig]


@pytest.mark.parametrize("lengths", ODD_SHAPES, ids=str)
def test_bert_is_transformers(lengths: list[int]) -> None:
    assert_same(*random_pair(BertConfig(**SMALL)), lengths)


@pytest.mark.parametrize("config", ROBERTAS)
@pytest.mark.parametrize("types", [1, 2])
def test_roberta_is_transformers(config: type[Any], types: int) -> None:
    small = {**SMALL, "max_position_embeddings": 42, "pad_token_id": 1, "type_vocab_size": types}
    pair = random_pair(config(**small))
    for lengths in ODD_SHAPES:
        assert_same(*pair, lengths)


@pytest.mark.parametrize(
    "activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"]
)
def test_every_activation_that_transformers_names(activation: str) -> None:
    assert_same(*random_pair(BertConfig(**SMALL, hidden_act=activation)), [9, 4])


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(CheckpointError, match="hidden_act is 'mish': expected one of gelu"):
        family_of("bert", "it").spec(
            BertConfig(**SMALL, hidden_act="mish"), "text-classification", ()
        )


@pytest.mark.parametrize("config", [BertConfig, *ROBERTAS])
def test_what_is_saved_is_what_was_loaded(config: type[Any]) -> None:
    theirs, ours = random_pair(config(**SMALL, pad_token_id=1))
    saved = ours.family.save(ours.state_dict(), ours.spec)
    for name, tensor in theirs.state_dict().items():
        if name.endswith("position_embeddings.weight"):
            rows = len(tensor) - ours.spec.max_positions
            assert torch.equal(saved[name][rows:], tensor[rows:]) and len(saved[name]) == len(
                tensor
            )
        elif not name.endswith(("position_ids", "token_type_ids")):
            assert torch.equal(saved[name], tensor), name
