"""CompactTokens in Triton's kernels: what the ONNX function says, and numpy; they compile for GPUs.

Without a GPU Triton's kernels run in its interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import onnx.inliner
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from trbert_deploy.plugins import DOMAIN, OPERATOR
from trbert_deploy.plugins.onnx_compaction import OPSET, compact_tokens
from trbert_deploy.selection.rules import SelectionRule
from trbert_deploy.selection.select import select

padded_compaction = pytest.importorskip("trbert_deploy.plugins.padded_compaction")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


@dataclass(frozen=True)
class Rows:
    """Padded rows, and what each of them wants."""

    hidden: np.ndarray
    keep_logit: np.ndarray
    lengths: np.ndarray
    protected: np.ndarray
    wanted: np.ndarray

    @property
    def present(self) -> np.ndarray:
        return np.arange(self.keep_logit.shape[1]) < self.lengths[:, None]


def rows_of(batch: int, length: int, width: int, seed: int, alike: bool = False) -> Rows:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((batch, length)).astype(np.float32)
    lengths = rng.integers(1, length + 1, batch)
    protected = rng.random((batch, length)) < 0.1
    protected[:, 0] = True
    present = np.arange(length) < lengths[:, None]
    least = (protected & present).sum(axis=1)
    return Rows(
        rng.standard_normal((batch, length, width)).astype(np.float32),
        logits.round() if alike else logits,
        lengths,
        protected,
        np.clip(rng.integers(1, length + 1, batch), least, lengths),
    )


def run(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States [B, K, H], filled slots [B, K] and places [B, K], by the kernels."""
    batch, length, width = rows.hidden.shape

    def here(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)

    given = [here(rows.hidden), here(rows.keep_logit)]
    given += [here(each).view(torch.uint8) for each in (rows.present, rows.protected)]
    made = [
        given[0].new_full((batch * length * width,), torch.nan),
        torch.full((batch * length,), 7, dtype=torch.uint8, device=DEVICE),
        torch.full((batch * length,), -1, dtype=torch.int64, device=DEVICE),
        torch.full((1,), -1, dtype=torch.int64, device=DEVICE),
    ]
    rank = torch.full((batch, length), -1, dtype=torch.int32, device=DEVICE)
    padded_compaction.compact_padded(*given, here(rows.wanted[:, None]), *made, rank)
    slots = int(made[3])
    used = batch * slots
    assert (made[2][used:] == -1).all() and (made[1][used:] == 7).all()  # nothing behind them
    states, filled, places = (each.cpu().numpy() for each in made[:3])
    return (
        states[: used * width].reshape(batch, slots, width),
        filled[:used].reshape(batch, slots) == 1,
        places[:used].reshape(batch, slots),
    )


RULES = [
    SelectionRule("threshold", 0.5),
    SelectionRule("threshold", 0.3, round_to=8),
    SelectionRule("ratio", 1 / 3),
    SelectionRule("budget", 6),
]


@settings(max_examples=60)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 40),
    width=st.integers(1, 9),
    seed=st.integers(0, 999),
    rule=st.sampled_from(RULES),
    alike=st.booleans(),
)
def test_keeps_what_the_rule_keeps(
    batch: int, length: int, width: int, seed: int, rule: SelectionRule, alike: bool
) -> None:
    rows = rows_of(batch, length, width, seed, alike)
    keep = select(rows.keep_logit, rows.lengths, rule, rows.protected)
    rows = replace(rows, wanted=keep.sum(axis=1))
    states, filled, places = run(rows)
    assert filled.shape[1] == rows.wanted.max()  # none is lost for want of a slot
    for row, kept in enumerate(keep):
        assert places[row, filled[row]].tolist() == np.flatnonzero(kept).tolist()
        assert filled[row].tolist() == sorted(filled[row].tolist(), reverse=True)
        np.testing.assert_array_equal(states[row], rows.hidden[row, places[row]])


@pytest.fixture(scope="module")
def onnx_function() -> onnxruntime.InferenceSession:
    kinds = {
        "hidden": (TensorProto.FLOAT, ["B", "S", "H"]),
        "keep_logit": (TensorProto.FLOAT, ["B", "S"]),
        "present": (TensorProto.BOOL, ["B", "S"]),
        "protected": (TensorProto.BOOL, ["B", "S"]),
        "wanted": (TensorProto.INT64, ["B", 1]),
        "capacity": (TensorProto.INT64, [1]),
    }
    made = {
        "compacted": (TensorProto.FLOAT, ["B", "K", "H"]),
        "filled": (TensorProto.BOOL, ["B", "K"]),
        "places": (TensorProto.INT64, ["B", "K"]),
    }
    graph = helper.make_graph(
        [helper.make_node(OPERATOR, list(kinds), list(made), domain=DOMAIN)],
        "compaction",
        [helper.make_tensor_value_info(name, *each) for name, each in kinds.items()],
        [helper.make_tensor_value_info(name, *each) for name, each in made.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=[compact_tokens()],
        ir_version=10,
    )
    return onnxruntime.InferenceSession(
        onnx.inliner.inline_local_functions(model).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )


@settings(max_examples=60)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 40),
    seed=st.integers(0, 999),
    alike=st.booleans(),
)
def test_equals_the_onnx_function(
    onnx_function: onnxruntime.InferenceSession, batch: int, length: int, seed: int, alike: bool
) -> None:
    rows = rows_of(batch, length, 3, seed, alike)
    expected = onnx_function.run(
        None,
        {
            "hidden": rows.hidden,
            "keep_logit": rows.keep_logit,
            "present": rows.present,
            "protected": rows.protected,
            "wanted": rows.wanted[:, None],
            "capacity": rows.wanted.max(keepdims=True),
        },
    )
    for ours, theirs in zip(run(rows), expected, strict=True):  # what fills slots, too
        np.testing.assert_array_equal(ours, theirs)


def test_rows_and_states_beyond_a_block(onnx_function: onnxruntime.InferenceSession) -> None:
    rows = rows_of(2, 1100, 300, seed=0, alike=True)
    keep = select(rows.keep_logit, rows.lengths, SelectionRule("ratio", 0.9), rows.protected)
    states, filled, places = run(replace(rows, wanted=keep.sum(axis=1)))
    for row, kept in enumerate(keep):
        assert places[row, filled[row]].tolist() == np.flatnonzero(kept).tolist()
        np.testing.assert_array_equal(states[row], rows.hidden[row, places[row]])


@pytest.mark.parametrize("wanted", [-(2**40), 0, 2**40])
def test_no_value_leads_out_of_the_tensors(wanted: int) -> None:
    rows = rows_of(3, 9, 4, seed=1)
    logits = rows.keep_logit.copy()
    logits[:, ::2] = np.nan
    logits[:, 1] = np.inf
    strange = replace(rows, keep_logit=logits, wanted=np.array([wanted, 2, 1]))
    _, filled, places = run(strange)  # which looks behind what may be written
    slots = min(max(wanted, 2), 9)
    assert filled.shape == (3, slots)
    assert filled.sum(axis=1).tolist() == [min(max(wanted, 0), 9), 2, 1]
    assert ((places >= 0) & (places < 9)).all()
    for own in places:
        assert len({*own.tolist()}) == slots


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trbert_deploy.plugins import padded_compaction as kernels

signatures = {
    "_count": {"wanted": "*i64", "slots": "*i64", "batch": "i32", "length": "i32"},
    "_rank": {
        "keep_logit": "*fp32", "present": "*u8", "protected": "*u8", "rank": "*i32", "length": "i32"
    },
    "_place": {
        "rank": "*i32", "wanted": "*i64", "slots": "*i64", "filled": "*u8", "places": "*i64",
        "length": "i32",
    },
    "_gather": {
        "hidden": "*i16", "places": "*i64", "slots": "*i64", "compacted": "*i16", "length": "i32",
        "width": "i32",
    },
}
constants = {
    "_count": {"BLOCK": 1024},
    "_rank": {"PROTECTED": 3.3e38, "LARGEST": 3.2e38, "TOKENS": 64, "OTHERS": 128},
    "_place": {"BLOCK": 1024},
    "_gather": {"SLOTS": 8, "WIDTH": 128},
}
for name, signature in signatures.items():
    known = constants[name]
    types = {**signature, **dict.fromkeys(known, "constexpr")}
    source = ASTSource(fn=getattr(kernels, name), signature=types, constexprs=known)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print(name, len(made.asm["cubin"]) > 0)
"""


def test_kernels_compile_for_gpus() -> None:
    """Into the machine code of an H100, which needs none."""
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=without, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "_count True", "_rank True", "_place True", "_gather True",
    ]  # fmt: skip
