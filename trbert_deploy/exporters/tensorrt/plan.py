"""What engines would take of a GPU's memory, before any is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import WEIGHTS
from trbert_deploy.config import EncoderSpec
from trbert_deploy.exporters.onnx.precision import HALF_TYPES
from trbert_deploy.exporters.onnx.static_quantization import EIGHT_BITS, product_weights
from trbert_deploy.exporters.tensorrt.engine_build import EngineOptions
from trbert_deploy.exporters.tensorrt.profiles import engine_profiles
from trbert_deploy.runtime.backends.tensorrt.engine_set import Profile, engine_sources

_SINGLE = 4  # bytes of a value
#: Scratch that the smallest engine takes.
_LEAST_SCRATCH = 8 * 2**20


@dataclass(frozen=True)
class EnginesPlan:
    """What engines would be, and take.

    Attributes:
        precision: fp32, fp16, bf16, int8 or fp8.
        weights_bytes: engine -> its weights, without what TensorRT adds.
        profiles: engine -> its profiles.
        scratch_bytes: engine -> of each of its profiles, reckoned; engines share it.
        state_bytes: engine -> of each of its profiles, states that go into it and come out of it.
    """

    precision: str
    weights_bytes: Mapping[str, int]
    profiles: Mapping[str, tuple[Profile, ...]]
    scratch_bytes: Mapping[str, tuple[int, ...]]
    state_bytes: Mapping[str, tuple[int, ...]]

    @property
    def total_bytes(self) -> int:
        """All weights, and the most that a call takes besides."""
        calls = (
            scratch + states
            for name in self.profiles
            for scratch, states in zip(
                self.scratch_bytes[name], self.state_bytes[name], strict=True
            )
        )
        return sum(self.weights_bytes.values()) + max(calls)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "total_bytes": self.total_bytes}


def plan_engines(bundle_path: Path, options: EngineOptions) -> EnginesPlan:
    """Reckon what ``build_engines`` would make, without TensorRT.

    Raises:
        StorageError, BundleError: the bundle cannot be read.
        LengthError: options that do not fit the bundle.
    """
    bundle = Bundle.open(bundle_path)
    manifest = bundle.manifest
    encoder = manifest.encoder
    profiles = engine_profiles(manifest, options.profiles(manifest.max_length))
    weights, scratch, states = {}, {}, {}
    of_parts = set[str]()  # weights in 8 bits, as the graph of the whole chain calls them
    for name, file in engine_sources(manifest).items():
        with bundle.reading(file, WEIGHTS) as path:
            graph = onnx.load(path, load_external_data=False).graph
        own = product_weights(graph) if options.precision in EIGHT_BITS else set[str]()
        weights[name] = sum(
            math.prod(tensor.dims)
            * (1 if tensor.name in own | of_parts else _value_bytes(options.precision))
            for tensor in graph.initializer
        )
        of_parts |= {f"{name}.{weight}" for weight in own}
        shapes = [(profile.max_batch, profile.max_length) for profile in profiles[name]]
        attends = manifest.graph(name).takes_mask
        scratch[name] = tuple(
            scratch_bytes(encoder, options.precision, *shape, attends=attends) for shape in shapes
        )
        states[name] = tuple(
            2 * batch * length * encoder.hidden_size * _SINGLE for batch, length in shapes
        )
    return EnginesPlan(options.precision, weights, profiles, scratch, states)


def scratch_bytes(
    encoder: EncoderSpec, precision: str, batch: int, length: int, *, attends: bool = True
) -> int:
    """GPU memory for a layer's activations.

    Reckoned: two states as wide as the feed-forward, two in float32 and one as they are multiplied,
    and a mask of who attends to whom. In float32 no single kernel computes attention, and its
    weights of all heads are written twice. Engines of MiniLM take 0.7 to 1.2 times as much as
    reckoned from 1,000 tokens on; attention with a bias (MPNet, DeBERTa) takes more.

    Args:
        batch, length: the largest of a profile.
        attends: whether tokens attend to each other, or each is for itself.
    """
    value = _value_bytes(precision)
    per_token = 2 * encoder.ffn_size * value + encoder.hidden_size * (2 * _SINGLE + value)
    pairs = batch * length**2 if attends else 0
    scratch = _LEAST_SCRATCH + batch * length * per_token + pairs
    if precision not in HALF_TYPES:
        scratch += 2 * pairs * encoder.num_heads * _SINGLE
    return scratch


def _value_bytes(precision: str) -> int:
    """Of a value that is not multiplied in 8 bits."""
    return 2 if precision in HALF_TYPES else _SINGLE
