"""The in-graph compaction against numpy's, and that TensorRT takes it."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trbert_deploy.plugins.onnx_compaction import (
    CAPACITY,
    COMPACTED,
    HIDDEN,
    KEEP,
    MASK,
    compaction_model,
)

SESSION = onnxruntime.InferenceSession(
    compaction_model().SerializeToString(), providers=["CPUExecutionProvider"]
)


def compact(hidden: np.ndarray, keep: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Compaction in numpy: survivors [B, K, H] in text order, zeros behind; mask [B, K]."""
    compacted = np.zeros((len(hidden), capacity, hidden.shape[2]), np.float32)
    mask = np.zeros((len(hidden), capacity), np.bool_)
    for row, (states, kept) in enumerate(zip(hidden, keep, strict=True)):
        survivors = states[kept][:capacity]
        compacted[row, : len(survivors)] = survivors
        mask[row, : len(survivors)] = True
    return compacted, mask


@settings(max_examples=60, deadline=None)
@given(data=st.data(), batch=st.integers(1, 4), length=st.integers(1, 40), seed=st.integers(0, 99))
def test_equals_numpy_compaction(data: st.DataObject, batch: int, length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((batch, length, 3)).astype(np.float32)
    keep = rng.random((batch, length)) < data.draw(st.sampled_from([0.0, 0.3, 0.9, 1.1]))
    capacity = data.draw(st.integers(1, length))
    inputs = {HIDDEN: hidden, KEEP: keep, CAPACITY: np.array([capacity])}
    received = SESSION.run([COMPACTED, MASK], inputs)
    for ours, theirs in zip(compact(hidden, keep, capacity), received, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_slots_left_over_are_zero_even_beside_what_is_not_finite() -> None:
    hidden = np.full((1, 3, 2), np.nan, np.float32)
    hidden[0, 1] = 5.0
    inputs = {HIDDEN: hidden, KEEP: np.array([[False, True, False]]), CAPACITY: np.array([2])}
    compacted, mask = SESSION.run([COMPACTED, MASK], inputs)
    np.testing.assert_array_equal(compacted, [[[5.0, 5.0], [0.0, 0.0]]])
    np.testing.assert_array_equal(mask, [[True, False]])


def test_text_order_holds_at_the_longest_rows() -> None:
    keep = np.zeros((1, 65536), np.bool_)
    keep[0, [0, 1, 65534, 65535]] = True
    hidden = np.arange(65536, dtype=np.float32).reshape(1, -1, 1)
    compacted, _ = SESSION.run(None, {HIDDEN: hidden, KEEP: keep, CAPACITY: np.array([4])})
    assert compacted[0, :, 0].tolist() == [0, 1, 65534, 65535]


def test_tensorrt_builds_it() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    from trbert_deploy.runtime.backends.tensorrt.library import library_log, load_tensorrt

    log = library_log(load_tensorrt("rtx"))
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse(compaction_model().SerializeToString()), log.errors()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape(HIDDEN, (1, 128, 384), (8, 512, 384), (32, 512, 384))
    profile.set_shape(KEEP, (1, 128), (8, 512), (32, 512))
    profile.set_shape_input(CAPACITY, [1], [128], [128])
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, log.errors()
