"""Compares engines, which polygraphy runs on the GPU, with the bundle's graphs in ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnxruntime

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    ATTENTION_MASK,
    HIDDEN,
    HIDDEN_OUT,
    INPUT_IDS,
)
from trbert_deploy.errors import (
    DeviceError,
    EngineError,
    MissingDependencyError,
    ParityError,
    first_line,
)
from trbert_deploy.exporters.checks.limits import LIMITS, Limits
from trbert_deploy.exporters.checks.parity import columns_of, largest_differences
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.backends.tensorrt.engine_set import EngineSet
from trbert_deploy.runtime.backends.tensorrt.library import gpu_compute_capability
from trbert_deploy.runtime.samples import bundle_rows

#: Precision of engines -> the limits that they keep to. NVIDIA GPUs multiply float32 in TF32, with
#: the mantissa of fp16.
_LIMITS = {**LIMITS, "fp32": LIMITS["fp16"]}


@dataclass(frozen=True)
class Verification:
    """How far an engine's profile is from ONNX Runtime in float32.

    Attributes:
        graph: its name.
        profile: index of the profile; its usual batch of its longest rows was compared, whole and
            padded.
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

    Rows of one length, and rows of unequal length with a mask. What is expected comes from the
    bundle's graphs, what is received from the engines' bytes: neither can stand for the other.

    Raises:
        ParityError: a difference above the precision's tolerance.
        EngineError: an engine is damaged, or cannot be run.
    """
    key = engine_set.manifest.key
    limits = _LIMITS[key.precision]
    # Read when polygraphy is first imported.
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if key.flavour == "rtx" else "0"
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    profiles = _batches(bundle, engine_set)
    results: list[Verification] = []
    steps = len(bundle.manifest.graphs) * len(profiles)
    for graph in bundle.manifest.graphs:
        with bundle.reading_graph(graph.name) as path:
            reference = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs = [tensor.name for tensor in graph.outputs]
        engine = EngineFromBytes(engine_set.read(graph.name))
        for profile, batches in enumerate(profiles):
            progress(f"verify {graph.name}", len(results), steps)
            runner = TrtRunner(engine, optimization_profile=profile, allocation_strategy="profile")
            worst: dict[str, float] = {}
            for batch in batches:
                is_padded = not batch[ATTENTION_MASK].all()
                where = f"engine {graph.name}, profile {profile}{', padded' if is_padded else ''}"
                feed = {tensor.name: batch[tensor.name] for tensor in graph.inputs}
                expected = dict(zip(outputs, reference.run(outputs, feed), strict=True))
                try:
                    with G_LOGGER.verbosity(G_LOGGER.ERROR), runner:
                        received = runner.infer(feed)
                        found = largest_differences(
                            expected, received, batch[ATTENTION_MASK], graph.token_outputs
                        )
                except PolygraphyException as problem:
                    raise EngineError(f"{where}: cannot be run: {first_line(problem)}") from None
                _require_close(found, limits, where)
                worst = {name: max(worst.get(name, 0.0), found[name]) for name in found}
                if HIDDEN_OUT in expected:  # real states for the next segment
                    batch[HIDDEN] = expected[HIDDEN_OUT]
            results.append(Verification(graph.name, profile, worst))
    progress("verify engines", steps, steps)
    return tuple(results)


def _require_close(found: Mapping[str, float], limits: Limits, where: str) -> None:
    for name, difference in found.items():
        tolerance = limits.tolerance_of(name)
        if not difference <= tolerance:  # so that NaN fails, too
            raise ParityError(
                f"{where}: {name} differs from ONNX Runtime by {difference:.2g}, more than the "
                f"tolerance {tolerance:g}"
            )


def _batches(bundle: Bundle, engine_set: EngineSet) -> list[list[dict[str, np.ndarray]]]:
    """For each profile its usual batch of its longest rows: without padding, and with it."""
    rows_of = bundle_rows(bundle)
    batches = []
    for profile in engine_set.manifest.key.profiles:
        columns = columns_of(rows_of(profile.max_length, profile.opt_batch))
        whole = np.ones(columns[INPUT_IDS].shape, np.bool_)
        padded = unequal_mask(profile.opt_batch, profile.max_length)
        batches.append(
            [
                {**columns, ATTENTION_MASK: whole},
                {
                    **columns,
                    INPUT_IDS: np.where(padded, columns[INPUT_IDS], 0),
                    ATTENTION_MASK: padded,
                },
            ]
        )
    return batches


def unequal_mask(batch: int, length: int) -> np.ndarray:
    """A mask [B, S] of rows of falling length, the longest one padded, too."""
    lengths = [max(1, length * (batch - place) // (batch + 1)) for place in range(batch)]
    return np.arange(length) < np.array(lengths)[:, None]
