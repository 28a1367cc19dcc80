"""One adapter over the builders of TensorRT 10, 11 and TensorRT for RTX.

Graphs are built strongly typed: an engine has the types that the graph has, in all three.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trbert_deploy.errors import ConfigError, DeviceError, EngineError, MissingDependencyError
from trbert_deploy.runtime.backends.tensorrt.engine_set import Profile
from trbert_deploy.runtime.backends.tensorrt.library import (
    TensorRT,
    failure,
    gpu_compute_capability,
    library_log,
)

#: What RTX engines are built for where there is no GPU to ask.
DEFAULT_COMPUTE_CAPABILITY = "8.6"

_TURING = "7.5"
#: Precision -> the first compute capability that multiplies in it.
_LEAST_CAPABILITY = {"int8": _TURING, "fp8": "8.9"}

#: The builder's own line for the memory that a context of one profile needs.
_SCRATCH = re.compile(r"Total Activation Memory: (\d+) bytes")


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine.

    Attributes:
        data: its bytes.
        build_seconds: time in the builder, parsing included.
        scratch_bytes: GPU memory for activations at the largest profile; None where the
            builder's log does not tell.
    """

    data: bytes
    build_seconds: float
    scratch_bytes: int | None


def choose_compute_capability(library: TensorRT, wanted: str | None) -> tuple[str, str | None]:
    """The compute capability to build for.

    TensorRT for RTX builds for any GPU that it knows, without one; standard TensorRT for
    the GPU it runs on.

    Args:
        wanted: such as 8.6, or None for the GPU that is there.

    Returns:
        The compute capability, and a note for the user where it was guessed.

    Raises:
        ConfigError: TensorRT cannot build for it.
        DeviceError: standard TensorRT, and no GPU.
    """
    if not library.is_rtx:
        present = gpu_compute_capability()
        if wanted not in (None, present):
            raise ConfigError(
                f"compute capability is {wanted}: TensorRT builds for the GPU it runs on, {present}"
            )
        return present, None
    possible = rtx_compute_capabilities(library)
    note = None
    if wanted is None:
        try:
            wanted = gpu_compute_capability()
        except (DeviceError, MissingDependencyError):
            wanted = DEFAULT_COMPUTE_CAPABILITY
            note = (
                f"no NVIDIA GPU here: building for compute capability {wanted}; "
                "name another with --compute-capability"
            )
    if wanted not in possible:
        raise ConfigError(
            f"compute capability is {wanted}: TensorRT for RTX {library.version} builds for "
            f"{', '.join(possible)}; data-centre GPUs need pip install 'trbert-deploy[tensorrt]'"
        )
    return wanted, note


def rtx_compute_capabilities(library: TensorRT) -> dict[str, Any]:
    """Compute capability -> the enum member of TensorRT for RTX, in ascending order."""
    members = library.module.ComputeCapability.__members__
    numbers = sorted(int(name[2:]) for name in members if re.fullmatch(r"SM\d+", name))
    return {f"{number // 10}.{number % 10}": members[f"SM{number}"] for number in numbers}


def multiplies_float32(library: TensorRT, compute_capability: str) -> bool:
    """Whether engines for a GPU may have matrix products in float32.

    TensorRT for RTX has none for Turing, whose tensor cores take half precision alone.
    """
    return not (library.is_rtx and compute_capability == _TURING)


def require_precision(library: TensorRT, compute_capability: str, precision: str) -> None:
    """Refuse a precision that no engine for a GPU can be built in.

    Raises:
        ConfigError: it cannot.
    """
    least = _LEAST_CAPABILITY.get(precision)
    if least is not None and _version(compute_capability) < _version(least):
        raise ConfigError(
            f"precision is {precision}: GPUs multiply in it from compute capability {least} on, "
            f"this one is {compute_capability}; build with --fp16"
        )
    has_float32 = precision in ("fp32", "bf16")  # what is not fp16 of it
    if has_float32 and not multiplies_float32(library, compute_capability):
        raise ConfigError(
            f"precision is {precision}: TensorRT for RTX multiplies matrices in fp16 alone on "
            f"compute capability {compute_capability}; build with --fp16"
        )


def _version(compute_capability: str) -> tuple[int, ...]:
    return tuple(map(int, compute_capability.split(".")))


def build_engine(
    library: TensorRT,
    source: Path | bytes,
    profiles: Sequence[Profile],
    compute_capability: str,
) -> BuiltEngine:
    """Build one engine.

    Args:
        source: an ONNX file beside its external weights, or a model with its weights inside.
            Every input has the shape [B, S] or [B, S, H], with B and S dynamic.
        profiles: the shapes to build for.

    Raises:
        EngineError: TensorRT cannot parse or build the graph, with all its reasons.
    """
    trt, log = library.module, library_log(library)
    log.lines.clear()
    start = time.perf_counter()
    builder = trt.Builder(log)
    # TensorRT 11 and RTX know no other kind of network and ignore the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    parsed = (
        parser.parse(source) if isinstance(source, bytes) else parser.parse_from_file(str(source))
    )
    if not parsed:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [
            f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors
        ]
        raise EngineError(failure(library, "cannot parse the graph", reasons or log.errors()))
    _allow_decomposed_attention(trt, network)
    config = builder.create_builder_config()
    if library.is_rtx:
        config.num_compute_capabilities = 1
        config.set_compute_capability(rtx_compute_capabilities(library)[compute_capability], 0)
    for profile in profiles:
        config.add_optimization_profile(_optimization_profile(builder, network, profile))
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(failure(library, "cannot build the engine", log.errors()))
    scratch = [int(match[1]) for line in log.lines if (match := _SCRATCH.search(line[1]))]
    return BuiltEngine(
        bytes(serialized), time.perf_counter() - start, max(scratch) if scratch else None
    )


def _allow_decomposed_attention(trt: Any, network: Any) -> None:
    """Let attention fall back to several kernels where there is none that does it all.

    Float32 attention has no such kernel and would be refused; in half precision the single
    kernel is still preferred. Older versions decompose while parsing and have no such layer.
    """
    boundary = getattr(trt, "IAttentionInputLayer", None)
    if boundary is None:
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = boundary  # TensorRT's own way to cast a layer in Python
            layer.attention.decomposable = True


def _optimization_profile(builder: Any, network: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        width = tuple(tensor.shape)[2:]
        made.set_shape(
            tensor.name,
            (profile.min_batch, profile.min_length, *width),
            (profile.opt_batch, profile.opt_length, *width),
            (profile.max_batch, profile.max_length, *width),
        )
    return made
