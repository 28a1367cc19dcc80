"""Compares engines on the GPU with ONNX Runtime, through polygraphy."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    ATTENTION_MASK,
    HIDDEN,
    HIDDEN_OUT,
    INPUT_IDS,
)
from trbert_deploy.errors import DeviceError, MissingDependencyError, ParityError
from trbert_deploy.exporters.checks.half_precision import HALF_TOLERANCES
from trbert_deploy.exporters.checks.parity import columns_of, relative_difference, row_maker
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.backends.tensorrt.engine_set import EngineSet
from trbert_deploy.runtime.backends.tensorrt.library import gpu_compute_capability

#: Of float32 engines: NVIDIA GPUs multiply in TF32, with the mantissa of fp16.
_TOLERANCES = {**HALF_TOLERANCES, "fp32": HALF_TOLERANCES["fp16"]}


@dataclass(frozen=True)
class Verification:
    """How far an engine's profile is from ONNX Runtime in float32.

    Attributes:
        graph: its name.
        profile: index of the profile; its usual batch and longest rows were compared.
        max_difference: largest relative difference per output.
    """

    graph: str
    profile: int
    max_difference: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def require_polygraphy() -> None:
    """Refuse to go on without polygraphy, before anything is built.

    Raises:
        MissingDependencyError: it is not installed.
    """
    # Not imported yet: its import reads which TensorRT to use (see verify_engines).
    if find_spec("polygraphy") is None:
        raise MissingDependencyError("--verify", "polygraphy", "verify")


def why_not_verifiable(engine_set: EngineSet) -> str | None:
    """Why these engines cannot be run on this machine, or None when they can."""
    try:
        present = gpu_compute_capability()
    except (DeviceError, MissingDependencyError):
        return "no NVIDIA GPU here"
    wanted = engine_set.manifest.key.compute_capability
    return None if present == wanted else f"this GPU is {present}, the engines are for {wanted}"


def verify_engines(
    bundle: Bundle, engine_set: EngineSet, progress: Progress = no_progress
) -> tuple[Verification, ...]:
    """Run every profile of every engine, and its float32 graph, on the same real rows.

    Raises:
        ParityError: a difference above the precision's tolerance.
    """
    key = engine_set.manifest.key
    # Read when polygraphy is first imported.
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if key.flavour == "rtx" else "0"
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    batches = _batches(bundle, engine_set)
    sessions = {
        graph.name: SessionFromOnnx(str(bundle.graph_path(graph.name)))
        for graph in bundle.manifest.graphs
    }
    results: list[Verification] = []
    steps = len(bundle.manifest.graphs) * len(batches)
    for graph in bundle.manifest.graphs:
        engine = EngineFromBytes(engine_set.read(graph.name))
        tensors = [tensor.name for tensor in graph.inputs]
        for profile, batch in enumerate(batches):
            progress(f"verify {graph.name}", len(results), steps)
            feed = OrderedDict((name, batch[name]) for name in tensors)
            runners = [
                OnnxrtRunner(sessions[graph.name]),
                TrtRunner(engine, optimization_profile=profile, allocation_strategy="profile"),
            ]
            with G_LOGGER.verbosity(G_LOGGER.ERROR):
                (_, (expected,)), (_, (received,)) = Comparator.run(runners, data_loader=[feed])
            results.append(
                Verification(
                    graph.name,
                    profile,
                    {
                        name: relative_difference(expected[name], received[name])
                        for name in expected
                    },
                )
            )
            _require_close(results[-1], _TOLERANCES[key.precision])
            batch[HIDDEN] = np.array(expected[HIDDEN_OUT])  # real states for the next segment
    return tuple(results)


def _batches(bundle: Bundle, engine_set: EngineSet) -> list[dict[str, np.ndarray]]:
    """For each profile its usual batch of its longest rows, without padding."""
    manifest = bundle.manifest
    rows_of = row_maker(
        bundle.tokenizer_path, manifest.max_length, manifest.encoder.vocab_size, bundle.samples()
    )
    batches = []
    for profile in engine_set.manifest.key.profiles:
        rows = rows_of(profile.max_length, profile.opt_batch)
        columns = columns_of(rows)
        batches.append({**columns, ATTENTION_MASK: np.ones(columns[INPUT_IDS].shape, np.bool_)})
    return batches


def _require_close(result: Verification, tolerance: float) -> None:
    for name, difference in result.max_difference.items():
        if not difference <= tolerance:  # so that NaN fails, too
            raise ParityError(
                f"engine {result.graph}, profile {result.profile}: {name} differs from ONNX "
                f"Runtime by {difference:.2g}, more than the tolerance {tolerance:g}"
            )
