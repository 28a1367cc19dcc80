"""MPNet against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from modeling.families import checks
from modeling.families.harness import assert_same, random_pair
from transformers import MPNetConfig
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.families.mpnet import RelativeBias, bucket_of
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.layouts.padded import PaddedLayout

#: 160 positions: pairs farther apart than the last bucket's edge.
SMALL: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 162,
}  # fmt: skip
ODD_SHAPES = [[1], [2], [7, 7], [160], [160, 1, 133], [5, 3, 5, 2]]


@pytest.mark.parametrize("lengths", ODD_SHAPES, ids=str)
def test_mpnet_is_transformers(lengths: list[int]) -> None:
    assert_same(*random_pair(MPNetConfig(**SMALL)), lengths)


def test_more_buckets_than_transformers_reads() -> None:
    config = MPNetConfig(**SMALL, relative_attention_num_buckets=40)
    assert_same(*random_pair(config), [160, 9])


@pytest.mark.parametrize("activation", checks.HF_ACTIVATIONS)
def test_every_activation_that_transformers_names(activation: str) -> None:
    assert_same(*random_pair(MPNetConfig(**SMALL, hidden_act=activation)), [9, 4])


@pytest.mark.parametrize("buckets", [32, 40])
def test_what_goes_in_comes_back(buckets: int) -> None:
    config = MPNetConfig(
        **SMALL, relative_attention_num_buckets=buckets, layer_norm_eps=1e-6, hidden_act="relu"
    )
    checks.assert_config_comes_back(config)
    checks.assert_weights_come_back(config)
    checks.assert_bare_encoder_loads(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "mish"}, "hidden_act is 'mish': expected one of gelu"),
        ({"is_decoder": True}, "this mpnet is a decoder"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"pad_token_id": 0}, "pad_token_id is 0: expected 1"),
        ({"relative_attention_num_buckets": 16}, "num_buckets is 16: expected 32 at least"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checks.spec_of(MPNetConfig(**{**SMALL, **changes}))


def test_buckets_are_those_of_transformers() -> None:
    distance = torch.arange(-700, 701)
    expected = MPNetEncoder.relative_position_bucket(distance)
    assert torch.equal(bucket_of(distance), expected)
    relative = RelativeBias(32, 1)
    relative.table.weight.data = torch.arange(32.0)[:, None]
    bias = relative(torch.tensor([[700, *range(1401)]]))[0, 0, 0, 1:]
    assert torch.equal(bias.long(), expected)


def test_the_bias_is_computed_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    forward = RelativeBias.forward

    def counting(self: RelativeBias, positions: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(positions.shape))
        return forward(self, positions)

    monkeypatch.setattr(RelativeBias, "forward", counting)
    _, ours = random_pair(MPNetConfig(**SMALL))
    lengths = torch.tensor([4, 9, 4])
    packed = PackedLayout(lengths.numpy())
    mask = torch.arange(9) < lengths[:, None]
    hidden = torch.randn(3, 9, ours.spec.hidden_size)
    ours.encoder.run_steps(hidden[mask], packed, 0, ours.spec.num_steps)
    assert sorted(asked) == [(1, 4), (1, 9)]  # whole rows of one length share their positions
    asked.clear()
    ours.encoder.run_steps(hidden, PaddedLayout(mask), 0, ours.spec.num_steps)
    assert asked == [(1, 9)]
    asked.clear()
    survivors = PackedLayout(lengths.numpy(), positions=torch.arange(17) * 2)
    ours.encoder.run_steps(hidden[mask], survivors, 0, ours.spec.num_steps)
    assert sorted(asked) == [(1, 9), (2, 4)]


def test_two_models_on_one_batch_have_a_bias_each() -> None:
    _, first = random_pair(MPNetConfig(**SMALL), seed=1)
    _, second = random_pair(MPNetConfig(**SMALL), seed=2)
    hidden = torch.randn(12, 32)
    shared = PackedLayout(torch.tensor([12]).numpy())
    first.encoder.run_steps(hidden, shared, 0, 6)
    received = second.encoder.run_steps(hidden, shared, 0, 6)
    alone = second.encoder.run_steps(hidden, PackedLayout(torch.tensor([12]).numpy()), 0, 6)
    assert torch.equal(received, alone)


def test_the_table_learns_from_every_layer() -> None:
    _, ours = random_pair(MPNetConfig(**SMALL))
    assert ours.encoder.relative is not None
    hidden = torch.randn(24, 32)
    table = ours.encoder.relative.table.weight
    gradients = []
    for layout, states in [
        (PackedLayout(torch.tensor([12, 12]).numpy()), hidden),
        (PaddedLayout(None), hidden.view(2, 12, 32)),
    ]:
        last = ours.encoder.run_steps(states, layout, 0, 6)
        gradients.append(torch.autograd.grad(last.square().sum(), table)[0])
    assert (gradients[0] != 0).any()
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-4)
