"""Compares engines, which polygraphy runs on the GPU, with the bundle's graphs in ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnxruntime

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    ATTENTION_MASK,
    CHAIN,
    HIDDEN,
    HIDDEN_OUT,
    INPUT_IDS,
    WEIGHTS,
)
from trbert_deploy.errors import (
    DeviceError,
    EngineError,
    MissingDependencyError,
    ParityError,
    first_line,
)
from trbert_deploy.exporters.checks.limits import ENGINE_LIMITS, Limits
from trbert_deploy.exporters.checks.parity import (
    columns_of,
    compare_results,
    largest_differences,
)
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.backends.backend import Tensors
from trbert_deploy.runtime.backends.one_graph import results_of_chain
from trbert_deploy.runtime.backends.tensorrt.engine_set import EngineSet, engine_sources
from trbert_deploy.runtime.backends.tensorrt.library import (
    gpu_compute_capability,
    load_tensorrt,
    register_plugin,
)
from trbert_deploy.runtime.samples import bundle_rows
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.tasks.registry import task_of

#: Precision of engines -> the limits that they keep to. NVIDIA GPUs multiply float32 in TF32, with
#: the mantissa of fp16.
_LIMITS = {**ENGINE_LIMITS, "fp32": ENGINE_LIMITS["fp16"]}


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
    sources = engine_sources(bundle.manifest, key.plugin)
    results: list[Verification] = []
    steps = len(sources) * len(profiles)
    for name, file in sources.items():
        graph = bundle.manifest.graph(name)
        with bundle.reading(file, WEIGHTS) as path:
            reference = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs = [tensor.name for tensor in graph.outputs]
        if name == CHAIN and key.plugin:
            register_plugin(load_tensorrt(key.flavour))
        engine = EngineFromBytes(engine_set.read(name))
        for profile, batches in enumerate(profiles):
            progress(f"verify {name}", len(results), steps)
            runner = TrtRunner(engine, optimization_profile=profile, allocation_strategy="profile")
            worst: dict[str, float] = {}
            for batch in batches:
                is_padded = not batch[ATTENTION_MASK].all()
                where = f"engine {name}, profile {profile}{', padded' if is_padded else ''}"
                feed = {tensor.name: batch[tensor.name] for tensor in graph.inputs}
                expected = dict(zip(outputs, reference.run(outputs, feed), strict=True))
                try:
                    with G_LOGGER.verbosity(G_LOGGER.ERROR), runner:
                        given = runner.infer(feed)
                        received = {output: given[output].copy() for output in outputs}
                except PolygraphyException as problem:
                    raise EngineError(f"{where}: cannot be run: {first_line(problem)}") from None
                if name == CHAIN:
                    found = _compare_chain(bundle, batch, expected, received, limits, where)
                else:
                    found = largest_differences(
                        expected, received, batch[ATTENTION_MASK], graph.token_outputs
                    )
                    _require_close(found, limits, where)
                worst = {each: max(worst.get(each, 0.0), found[each]) for each in found}
                if HIDDEN_OUT in expected:  # real states for the next segment
                    batch[HIDDEN] = expected[HIDDEN_OUT]
            results.append(Verification(name, profile, worst))
    progress("verify engines", steps, steps)
    return tuple(results)


def _compare_chain(
    bundle: Bundle,
    batch: Mapping[str, np.ndarray],
    expected: Tensors,
    received: Tensors,
    limits: Limits,
    where: str,
) -> dict[str, float]:
    """How far the whole chain's outputs are apart, of rows that lose the same tokens.

    In half precision a few tokens near the threshold meet another fate, and their rows go another
    way: they are limited in number.
    """
    task = task_of(bundle.manifest.encoder)
    lengths = batch[ATTENTION_MASK].sum(axis=1).tolist()
    ids = zip(batch[INPUT_IDS], lengths, strict=True)
    rows = [TokenRow(row[:length], np.zeros(length, np.int64)) for row, length in ids]
    cuts = len(bundle.manifest.reduction.cuts)
    ours, theirs = (
        results_of_chain(task.outputs, side, lengths, cuts) for side in (expected, received)
    )
    # Of so few rows one answer that turns says nothing: that is compared before engines are built.
    limits = replace(limits, rows_apart=1.0, answer_agreement=0.0)
    parity = compare_results(
        task, rows, ours, theirs, limits, name=where, reference_name="ONNX Runtime"
    )
    return {output.name: parity.max_output_difference for output in task.outputs}


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
    profiles = next(iter(engine_set.manifest.key.profiles.values()))  # all are of these rows
    for profile in profiles:
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
