"""DeBERTa, versions 2 and 3, against transformers."""

from __future__ import annotations

from typing import Any

import pytest
from modeling.families import checks
from modeling.families.harness import assert_same, random_pair
from transformers import DebertaV2Config

SMALL: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 70,
}  # fmt: skip
#: As DeBERTa-v3 is, with so few buckets that rows reach all of them.
V3: dict[str, Any] = {
    **SMALL, "relative_attention": True, "pos_att_type": "p2c|c2p", "share_att_key": True,
    "position_buckets": 16, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
}  # fmt: skip
ODD_SHAPES = [[1], [2], [7, 7], [70], [70, 1, 43], [5, 3, 5, 2]]
#: Entries that transformers reads from config.json and its class does not declare.
UNDECLARED = ("embedding_size", "share_att_key", "norm_rel_ebd", "position_buckets")

VARIANTS: dict[str, dict[str, Any]] = {
    "v2": {"max_relative_positions": -1, "type_vocab_size": 2, "position_biased_input": True},
    "no buckets": {"position_buckets": -1},
    "no buckets, near": {"position_buckets": -1, "max_relative_positions": 9},
    "far": {"max_relative_positions": 200},
    "near": {"max_relative_positions": 20},
    "two buckets": {"position_buckets": 2},
    "narrow": {"embedding_size": 12, "type_vocab_size": 1},
    "no norm": {"norm_rel_ebd": "none", "position_biased_input": True},
    "no kind": {"pos_att_type": None},
    "plain": {"relative_attention": False, "position_biased_input": True, "pos_att_type": None},
    "plain, scaled": {"relative_attention": False, "position_biased_input": True},
}


@pytest.mark.parametrize("lengths", ODD_SHAPES, ids=str)
def test_deberta_v3_is_transformers(lengths: list[int]) -> None:
    assert_same(*random_pair(DebertaV2Config(**V3)), lengths)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_is_transformers(changes: dict[str, Any]) -> None:
    if not changes.get("relative_attention", True):
        changes = {**changes, "norm_rel_ebd": "none"}
    config = DebertaV2Config(**{**V3, **changes})
    pair = random_pair(config)
    for lengths in ODD_SHAPES:
        assert_same(*pair, lengths)
    checks.assert_config_comes_back(config, UNDECLARED)
    checks.assert_weights_come_back(config)
    checks.assert_bare_encoder_loads(config)


@pytest.mark.parametrize("kinds", [["c2p"], ["p2c"], ["p2c", "c2p"]], ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_every_kind_of_score_is_transformers(kinds: list[str], shared: bool) -> None:
    config = DebertaV2Config(**{**V3, "pos_att_type": kinds, "share_att_key": shared})
    pair = random_pair(config)
    for lengths in ([70, 1, 43], [7, 7]):
        assert_same(*pair, lengths)
    checks.assert_config_comes_back(config, UNDECLARED)
    checks.assert_weights_come_back(config)
    checks.assert_bare_encoder_loads(config)
