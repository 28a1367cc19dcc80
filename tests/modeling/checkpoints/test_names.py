"""Old and wrapped names become those of today."""

from __future__ import annotations

import pytest
import torch

from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.checkpoints.names import mend_names

VECTOR, MASK = torch.zeros(4), torch.ones(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("encoder.layer.0.output.LayerNorm.gamma", "encoder.layer.0.output.LayerNorm.weight"),
        ("bert.embeddings.LayerNorm.beta", "bert.embeddings.LayerNorm.bias"),
        ("LayerNorm.beta", "LayerNorm.bias"),
        ("layers.0.layer_norm.gamma", "layers.0.layer_norm.weight"),
        ("module.bert.pooler.dense.weight", "bert.pooler.dense.weight"),
        ("_orig_mod.bert.pooler.dense.weight", "bert.pooler.dense.weight"),
        ("module._orig_mod.bert.LayerNorm.gamma", "bert.LayerNorm.weight"),
        ("_orig_mod.module.classifier.bias", "classifier.bias"),
        ("encoder._orig_mod.layer.0.weight", "encoder.layer.0.weight"),
    ],
)
def test_old_names_become_those_of_today(old: str, new: str) -> None:
    state = {old: VECTOR}
    mended = mend_names(state)
    assert list(mended) == [new] and mended[new] is VECTOR
    assert list(state) == [old]


@pytest.mark.parametrize(
    "name",
    [
        "bert.encoder.layer.0.output.LayerNorm.weight",
        "layer_scale.gamma",
        "submodule.weight",
        "encoder.module.weight",
        "my_orig_mod.weight",
        "attention.bias",  # of one dimension: a parameter
        "encoder.relative_attention_bias.weight",
        "policies.0.score.weight",
    ],
)
def test_other_names_stay(name: str) -> None:
    assert list(mend_names({name: VECTOR})) == [name]


@pytest.mark.parametrize(
    "name",
    [
        "bert.embeddings.position_ids",
        "module.embeddings.position_ids",
        "position_ids",
        "embeddings.token_type_ids",
        "encoder.rotary_emb.inv_freq",
        "model.rotary_emb.sliding_attention_original_inv_freq",
        "layers.0.rotary_emb.cos_cached",
        "layers.0.attn.masked_bias",
    ],
)
def test_stale_buffers_are_dropped(name: str) -> None:
    assert mend_names({name: VECTOR}) == {}


@pytest.mark.parametrize("name", ["h.0.attn.bias", "layers.1.attention.bias"])
def test_causal_masks_are_dropped(name: str) -> None:
    assert mend_names({name: MASK}) == {}


def test_the_order_is_kept() -> None:
    names = ["b", "position_ids", "a", "c"]
    assert list(mend_names(dict.fromkeys(names, VECTOR))) == ["b", "a", "c"]


@pytest.mark.parametrize(
    "name",
    [
        "conv.parametrizations.weight.original0",
        "module.conv.parametrizations.weight.original1",
        "encoder.pos_conv_embed.conv.weight_g",
        "weight_v",
    ],
)
def test_parametrized_weights_are_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"tensor {name} is a factor of a parametrized"):
        mend_names({name: VECTOR})


def test_two_names_that_become_one_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"tensors a\.weight and module\.a\.weight are both"):
        mend_names({"a.weight": VECTOR, "module.a.weight": VECTOR})
