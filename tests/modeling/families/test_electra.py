"""ELECTRA against transformers."""

from __future__ import annotations

from typing import Any

import pytest
from modeling.families import checks
from modeling.families.harness import assert_same, random_pair
from transformers import ElectraConfig

from trbert_deploy.errors import CheckpointError

SMALL: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40,
}  # fmt: skip
ODD_SHAPES = [[1], [2], [7, 7], [40], [40, 1, 13], [5, 3, 5, 2]]
WIDTHS = [12, 32, 48]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("lengths", ODD_SHAPES, ids=str)
def test_electra_is_transformers(lengths: list[int], width: int) -> None:
    assert_same(*random_pair(ElectraConfig(**SMALL, embedding_size=width)), lengths)


@pytest.mark.parametrize("types", [1, 3])
def test_other_numbers_of_token_types(types: int) -> None:
    config = ElectraConfig(**SMALL, embedding_size=12, type_vocab_size=types)
    assert_same(*random_pair(config), [9, 4])


@pytest.mark.parametrize("activation", checks.HF_ACTIVATIONS)
def test_every_activation_that_transformers_names(activation: str) -> None:
    config = ElectraConfig(**SMALL, hidden_act=activation, summary_activation="tanh")
    assert_same(*random_pair(config), [9, 4])


@pytest.mark.parametrize("width", WIDTHS)
def test_what_goes_in_comes_back(width: int) -> None:
    config = ElectraConfig(
        **SMALL, embedding_size=width, layer_norm_eps=1e-6, hidden_act="relu", pad_token_id=3
    )
    checks.assert_config_comes_back(config)
    checks.assert_weights_come_back(config)
    checks.assert_bare_encoder_loads(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "mish"}, "hidden_act is 'mish': expected one of gelu"),
        ({"is_decoder": True}, "this electra is a decoder"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checks.spec_of(ElectraConfig(**SMALL, **changes))
