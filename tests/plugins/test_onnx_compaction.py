"""CompactTokens in ONNX against the selection rule and numpy's compaction; TensorRT takes it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from trbert_deploy.plugins import DOMAIN
from trbert_deploy.plugins.onnx_compaction import OPSET, compact_tokens, wanted_tokens
from trbert_deploy.selection.rules import SelectionRule
from trbert_deploy.selection.select import keep_best, select

RULES = [
    SelectionRule("threshold", 0.5),
    SelectionRule("threshold", 0.3, round_to=8),
    SelectionRule("threshold", 0.0),
    SelectionRule("threshold", 1.0),
    SelectionRule("ratio", 0.07),
    SelectionRule("ratio", 1 / 3),
    SelectionRule("ratio", 0.5, round_to=4),
    SelectionRule("budget", 6),
    SelectionRule("budget", 8, round_to=8),
]


def model_of(rule: SelectionRule) -> onnx.ModelProto:
    """Both functions in one graph, inlined; slots are given."""
    tensors = {
        "hidden": (TensorProto.FLOAT, ["B", "S", 3]),
        "keep_logit": (TensorProto.FLOAT, ["B", "S"]),
        "present": (TensorProto.BOOL, ["B", "S"]),
        "protected": (TensorProto.BOOL, ["B", "S"]),
        "capacity": (TensorProto.INT64, [1]),
    }
    made = {
        "compacted": (TensorProto.FLOAT, ["B", "K", 3]),
        "filled": (TensorProto.BOOL, ["B", "K"]),
        "places": (TensorProto.INT64, ["B", "K"]),
        "wanted": (TensorProto.INT64, ["B", 1]),
    }
    of_rows = ["keep_logit", "present", "protected"]
    graph = helper.make_graph(
        [
            helper.make_node("WantedTokens", of_rows, ["wanted"], domain=DOMAIN),
            helper.make_node(
                "CompactTokens",
                ["hidden", *of_rows, "wanted", "capacity"],
                ["compacted", "filled", "places"],
                domain=DOMAIN,
            ),
        ],
        "compaction",
        [helper.make_tensor_value_info(name, *each) for name, each in tensors.items()],
        [helper.make_tensor_value_info(name, *each) for name, each in made.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=[compact_tokens(), wanted_tokens(rule)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return onnx.inliner.inline_local_functions(model)


SESSIONS = {
    rule: onnxruntime.InferenceSession(
        model_of(rule).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for rule in RULES
}


def compact(
    hidden: np.ndarray, keep: np.ndarray, capacity: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compaction in numpy: survivors in text order; zeros behind them."""
    compacted = np.zeros((len(hidden), capacity, hidden.shape[2]), np.float32)
    filled = np.zeros((len(hidden), capacity), np.bool_)
    places = np.zeros((len(hidden), capacity), np.int64)
    for row, kept in enumerate(keep):
        (survivors,) = kept.nonzero()
        compacted[row, : len(survivors)] = hidden[row, survivors]
        places[row, : len(survivors)] = survivors
        filled[row, : len(survivors)] = True
    return compacted, filled, places


def run(rule: SelectionRule, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return SESSIONS[rule].run(["compacted", "filled", "places", "wanted"], inputs)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), batch=st.integers(1, 4), length=st.integers(1, 40), seed=st.integers(0, 999))
def test_keeps_what_the_rule_keeps(data: st.DataObject, batch: int, length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rule = data.draw(st.sampled_from(RULES))
    hidden = rng.standard_normal((batch, length, 3)).astype(np.float32)
    logits = rng.standard_normal((batch, length)).astype(np.float32)
    if data.draw(st.booleans()):
        logits = logits.round()  # many of them alike
    lengths = rng.integers(1, length + 1, batch)
    present = np.arange(length) < lengths[:, None]
    protected = rng.random((batch, length)) < 0.1
    protected[:, 0] = True
    keep = select(logits, lengths, rule, protected)
    inputs = {
        "hidden": hidden, "keep_logit": logits, "present": present, "protected": protected
    }  # fmt: skip
    slots = int(keep.sum(axis=1).max())
    given_slots = slots + data.draw(st.integers(0, length - slots))
    received = run(rule, inputs | {"capacity": np.array([given_slots])})
    expected = compact(hidden, keep, given_slots)
    np.testing.assert_array_equal(received[1], expected[1])
    np.testing.assert_array_equal(received[3][:, 0], keep.sum(axis=1))
    for ours, theirs in ((expected[0], received[0]), (expected[2], received[2])):
        np.testing.assert_array_equal(ours[expected[1]], theirs[expected[1]])
    for row in received[2]:
        assert len({*row.tolist()}) == given_slots  # no token is in two slots


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 40), seed=st.integers(0, 999), share=st.floats(0.01, 1.0))
def test_rows_that_want_more_than_there_is_lose_their_least(
    length: int, seed: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((2, length)).astype(np.float32)
    protected = np.zeros((2, length), np.bool_)
    protected[:, 0] = True
    lengths = np.array([length, length])
    slots = max(1, int(share * length))
    rule = SelectionRule("threshold", 0.0)
    inputs = {
        "hidden": np.zeros((2, length, 3), np.float32),
        "keep_logit": logits,
        "present": np.ones((2, length), np.bool_),
        "protected": protected,
        "capacity": np.array([slots]),
    }
    _, filled, places, _ = run(rule, inputs)
    best = keep_best(logits, lengths, np.array([slots, slots]), protected)
    assert filled.all()
    for row, kept in zip(places, best, strict=True):
        assert row.tolist() == kept.nonzero()[0].tolist()


def test_text_order_holds_at_the_longest_rows() -> None:
    length = 65536
    logits = np.full((1, length), -9.0, np.float32)
    logits[0, [1, 65534, 65535]] = (1.0, 2.0, 3.0)
    inputs = {
        "hidden": np.zeros((1, length, 3), np.float32),
        "keep_logit": logits,
        "present": np.ones((1, length), np.bool_),
        "protected": np.arange(length)[None] == 0,
        "capacity": np.array([4]),
    }
    assert run(RULES[0], inputs)[2].tolist() == [[0, 1, 65534, 65535]]


@pytest.mark.parametrize("rule", RULES[:7:3], ids=lambda rule: rule.kind)
def test_tensorrt_builds_it(rule: SelectionRule) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    from trbert_deploy.runtime.backends.tensorrt.library import library_log, load_tensorrt

    log = library_log(load_tensorrt("rtx"))
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model_of(rule).SerializeToString()), log.errors()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    for name in ("keep_logit", "present", "protected"):
        profile.set_shape(name, (1, 128), (8, 512), (32, 512))
    profile.set_shape("hidden", (1, 128, 3), (8, 512, 3), (32, 512, 3))
    profile.set_shape_input("capacity", [1], [128], [128])
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, log.errors()
