"""What every family must do besides giving transformers' states."""

from __future__ import annotations

from typing import Any

import torch
from modeling.families.harness import LABELS, random_pair
from transformers import AutoModel, PretrainedConfig

from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.modeling.families.registry import family_of
from trbert_deploy.modeling.layouts.padded import PaddedLayout
from trbert_deploy.modeling.model import ReducedModel

TASK = "text-classification"

#: Names of one function each that transformers' configurations use.
HF_ACTIVATIONS = ["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"]


def spec_of(config: PretrainedConfig) -> EncoderSpec:
    """Our description of a configuration."""
    return family_of(config.model_type, "the test").spec(config, TASK, LABELS)


def assert_config_comes_back(config: PretrainedConfig, undeclared: tuple[str, ...] = ()) -> None:
    """A configuration with the entries of ``hf_config`` in it gives the same description.

    Args:
        undeclared: entries that transformers reads though its class has no field for them.
    """
    spec = spec_of(config)
    entries = family_of(config.model_type, "the test").hf_config(spec)
    fresh = type(config)()
    assert all(hasattr(fresh, name) for name in entries if name not in undeclared)
    assert spec_of(type(config)(**{**config.to_dict(), **entries})) == spec
    assert EncoderSpec.from_json(spec.to_json()) == spec


def assert_weights_come_back(config: PretrainedConfig) -> None:
    """What is saved is what was loaded, but for rows of positions that no token has."""
    theirs, ours = random_pair(config)
    saved = ours.family.save(ours.state_dict(), ours.spec)
    assert set(saved) == set(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        unused = 0
        if name.endswith(".position_embeddings.weight"):
            unused = len(tensor) - ours.spec.max_positions
        assert saved[name].shape == tensor.shape, name
        assert torch.equal(saved[name][unused:], tensor[unused:]), name
    loaded = ours.family.load(saved, ours.spec)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


@torch.no_grad()
def assert_bare_encoder_loads(config: PretrainedConfig) -> None:
    """A model without a head gives all of the encoder's tensors, and the same states."""
    theirs: Any = AutoModel.from_config(config).eval()
    spec = spec_of(config)
    ours = ReducedModel(spec, ReductionConfig()).eval()
    loaded = ours.family.load(theirs.state_dict(), spec)
    missing, unexpected = ours.load_state_dict(loaded, strict=False)
    assert not unexpected and all(name.startswith("head.") for name in missing)
    ids = torch.randint(10, spec.vocab_size, (2, 11))
    layout = PaddedLayout(None)
    types = torch.zeros_like(ids)
    received = ours.encoder.run_steps(ours.embed(ids, types, layout), layout, 0, spec.num_steps)
    expected = theirs(input_ids=ids).last_hidden_state
    torch.testing.assert_close(received, expected, atol=1e-5, rtol=0)
