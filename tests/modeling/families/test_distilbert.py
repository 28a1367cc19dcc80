"""DistilBERT against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from modeling.families import checks
from modeling.families.harness import assert_same, random_pair
from transformers import DistilBertConfig

from trbert_deploy.errors import CheckpointError

SMALL: dict[str, Any] = {
    "vocab_size": 90, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48,
    "max_position_embeddings": 40,
}  # fmt: skip
ODD_SHAPES = [[1], [2], [7, 7], [40], [40, 1, 13], [5, 3, 5, 2]]


@pytest.mark.parametrize("sinusoidal", [False, True])
@pytest.mark.parametrize("lengths", ODD_SHAPES, ids=str)
def test_distilbert_is_transformers(lengths: list[int], sinusoidal: bool) -> None:
    pair = random_pair(DistilBertConfig(**SMALL, sinusoidal_pos_embds=sinusoidal))
    assert_same(*pair, lengths)


@pytest.mark.parametrize("activation", checks.HF_ACTIVATIONS)
def test_every_activation_that_transformers_names(activation: str) -> None:
    assert_same(*random_pair(DistilBertConfig(**SMALL, activation=activation)), [9, 4])


@pytest.mark.parametrize("sinusoidal", [False, True])
def test_what_goes_in_comes_back(sinusoidal: bool) -> None:
    config = DistilBertConfig(
        **SMALL, activation="relu", dropout=0.2, pad_token_id=3, sinusoidal_pos_embds=sinusoidal
    )
    checks.assert_config_comes_back(config)
    checks.assert_weights_come_back(config)
    checks.assert_bare_encoder_loads(config)


def test_what_is_not_computed_is_refused() -> None:
    with pytest.raises(CheckpointError, match="activation is 'mish': expected one of gelu"):
        checks.spec_of(DistilBertConfig(**SMALL, activation="mish"))
    config = DistilBertConfig(**SMALL)
    config.is_decoder = True
    with pytest.raises(CheckpointError, match="this distilbert is a decoder"):
        checks.spec_of(config)


def test_an_unknown_tensor_is_refused() -> None:
    theirs, ours = random_pair(DistilBertConfig(**SMALL))
    state = theirs.state_dict() | {"distilbert.embeddings.token_type_embeddings2": torch.ones(1)}
    with pytest.raises(CheckpointError, match="token_type_embeddings2, which distilbert does not"):
        ours.family.load(state, ours.spec)
