"""States that stay on a device: the answers of states on the host, in every task; no copies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import make_texts, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trbert_deploy import load
from trbert_deploy.batching import NO_PADDING, Padding
from trbert_deploy.bundle.manifest import HIDDEN, HIDDEN_OUT, KEEP_LOGIT
from trbert_deploy.errors import DeviceError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.plugins import onnx_states
from trbert_deploy.runtime.arrays import HOST
from trbert_deploy.runtime.backends import onnxruntime as onnxruntime_backend
from trbert_deploy.runtime.backends.backend import BackendOptions, Tensors
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.backends.onnxruntime_memory import OnnxRuntimeMemory
from trbert_deploy.runtime.backends.onnxruntime_package import CUDA
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.device_arrays import DeviceArrays, DeviceStates, device_graph
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.tasks.fill_mask import MASK_ID, TARGET_IDS, TARGETS

TEXTS = [row["text"] for row in make_texts(16, seed=1)]
PAIRS = [("who found the house?", text) for text in TEXTS]
MASKED = [f"the [MASK] {text} [MASK]" for text in TEXTS]
EMBEDDINGS = {"task": "feature-extraction", "labels": ()}
#: Name -> what the model does, its cuts, and its texts.
MODELS: dict[str, tuple[dict[str, Any], str, list[Any]]] = {
    "labels": ({}, "1,2", TEXTS),
    "within layers": ({}, "0,0.5,2.5", TEXTS),
    "tags": ({"task": "token-classification", "labels": ("O", "B-X", "B-Y")}, "0.5,2", TEXTS),
    "mean": ({**EMBEDDINGS, "answers": {"pooling": "mean"}}, "1,2", TEXTS),
    "max": ({**EMBEDDINGS, "answers": {"pooling": "max"}}, "1,2", TEXTS),
    "questions": ({"task": "question-answering", "labels": ("start", "end")}, "1,2", PAIRS),
    "masks": (
        {
            "task": "fill-mask", "labels": (), "head": {"logits": 256},
            "answers": {MASK_ID: 4, TARGETS: [], TARGET_IDS: []},
        },
        "1,2", MASKED,
    ),
    "positions": (
        {"family": "mpnet", "token_types": 0, "pad_token_id": 1, "options": {"buckets": 32}},
        "1,2", TEXTS,
    ),
}  # fmt: skip


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and CUDA not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    return str(request.param)


@pytest.fixture(scope="module", params=MODELS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path
) -> Pipeline:
    """A bundle, opened as users do; what it is asked are its texts."""
    changes, cuts, texts = MODELS[request.param]
    place = tmp_path_factory.mktemp("device") / "ckpt"
    save_checkpoint(Checkpoint(tiny_model(cuts, **changes), tokenizer_dir, 64), place)
    export_bundle(place, place.with_name("bundle"))
    pipeline = load(place.with_name("bundle"), threads=1)
    pipeline.texts = texts  # type: ignore[attr-defined]
    return pipeline


def chain_of(pipeline: Pipeline, states_on: str | None, **limits: Any) -> Chain:
    bundle, reduction = pipeline.require_bundle(), pipeline.reduction
    backend = OnnxRuntimeBackend(bundle, BackendOptions(threads=1), states_on=states_on)
    return Chain(backend, reduction, pipeline.encoder.num_layers, task=pipeline.task, **limits)


def rows_of(pipeline: Pipeline) -> list[TokenRow]:
    rows = pipeline.tokenize(pipeline.texts)  # type: ignore[attr-defined]
    short = [row.part(range(min(map(len, rows)))) for row in rows]
    return [*rows, *short, *(row.part([0, 3, 4]) for row in rows)]  # these ask for no mask


@pytest.mark.parametrize(
    "limits",
    [{"padding": NO_PADDING}, {"padding": Padding(share=0.5)}, {"max_batch_tokens": 70}],
    ids=["equal lengths", "padded", "few tokens"],
)
def test_it_answers_as_states_on_the_host(
    exported: Pipeline, device: str, limits: dict[str, Any]
) -> None:
    rows = rows_of(exported)
    expected, received = (chain_of(exported, where, **limits) for where in (None, device))
    for run in ("run", "run_dense"):
        for one, other in zip(
            getattr(expected, run)(rows), getattr(received, run)(rows), strict=True
        ):
            assert [list(kept) for kept in one.kept] == [list(kept) for kept in other.kept]
            for name, values in one.outputs.items():
                np.testing.assert_allclose(other.outputs[name], values, atol=1e-5)


def test_no_state_reaches_the_host(exported: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a segment the host reads one keep logit a slot, of dropped tokens what they say."""
    read: list[dict[str, int]] = []
    brought: list[tuple[str, ...]] = []

    class Watched(OnnxRuntimeMemory):
        def run(self, session: Any, inputs: Tensors, wanted: Sequence[str]) -> Tensors:
            for name, value in inputs.items():
                assert isinstance(value, DeviceStates) == (name == HIDDEN)
            outputs = super().run(session, inputs, wanted)
            on_host = {n: v.size for n, v in outputs.items() if isinstance(v, np.ndarray)}
            assert HIDDEN_OUT not in on_host
            batch, length = next(iter(inputs.values())).shape[:2]
            if KEEP_LOGIT in on_host:
                assert on_host == {KEEP_LOGIT: batch * length}
            read.append(on_host)
            return outputs

        def to_host(self, states: DeviceStates) -> Any:
            raise AssertionError("the chain looked into states")

        def _write(self, session: Any, source: Any, inputs: Tensors, *rest: Any) -> None:
            brought.append(tuple(inputs))
            super()._write(session, source, inputs, *rest)

    monkeypatch.setattr(onnxruntime_backend, "OnnxRuntimeMemory", Watched)
    chain = chain_of(exported, "cpu", padding=Padding(share=0.5))
    chain.run(rows_of(exported))
    segments = sum(KEEP_LOGIT in each for each in read)
    assert segments >= len(exported.reduction.cuts)
    assert set(brought) <= {("places",), ("places", "weights")} and brought


@st.composite
def some_batches(draw: st.DrawFn) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Batches of states, and places in each of their rows, at least one of them."""
    width = draw(st.integers(1, 5))
    sizes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=3)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    batches, places = [], []
    for rows, length in draw(sizes):
        batches.append(rng.normal(size=(rows, length, width)).astype(np.float32))
        counts = draw(st.lists(st.integers(1, length), min_size=rows, max_size=rows))
        places.append([np.sort(rng.choice(length, count, replace=False)) for count in counts])
    return batches, places


@cache
def memory_on(device: str) -> OnnxRuntimeMemory:
    """The memory of a device, and what runs there."""
    providers = [CUDA] if device == "cuda" else ["CPUExecutionProvider"]
    return OnnxRuntimeMemory(
        device, lambda graph: onnxruntime.InferenceSession(graph, providers=providers)
    )


@given(some_batches(), st.randoms(use_true_random=False))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_states_come_together_as_on_the_host(
    device: str, case: tuple[list[np.ndarray], list[list[np.ndarray]]], random: Random
) -> None:
    memory = memory_on(device)
    arrays = DeviceArrays(memory)
    on_host, on_device = [], []
    for batch, places in zip(*case, strict=True):
        value = onnxruntime.OrtValue.ortvalue_from_numpy(batch, device, 0)
        on_host += HOST.rows(batch, places)
        on_device += arrays.rows(memory.states(value), places)
    order = list(range(len(on_host)))
    random.shuffle(order)
    on_host, on_device = ([rows[place] for place in order] for rows in (on_host, on_device))
    together = arrays.to_host(arrays.batch(on_device))
    for row, expected in zip(together, on_host, strict=True):
        assert np.array_equal(row[: len(expected)], expected)
    assert together.shape == HOST.batch(on_host).shape
    means = arrays.to_host(arrays.means(on_device))
    np.testing.assert_allclose(means, HOST.means(on_host), atol=1e-6)


def test_a_batch_that_lost_rows_is_found() -> None:
    states = DeviceStates(None, 0, (1, 3, 2))
    with pytest.raises(ValueError, match="argument 2 is longer"):
        DeviceArrays(memory_on("cpu")).rows(states, [np.zeros(1, np.int64)] * 2)


def test_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = OnnxRuntimeMemory("cpu", memory_on("cpu")._open_session)
    with pytest.raises(DeviceError, match=r"^ONNX Runtime cannot bring states together on cpu: .+"):
        memory.empty((2**30, 2**30, 4))
    states = memory.empty((1, 3, 2))
    with pytest.raises(DeviceError, match=r"together on cpu: .*; run smaller batches \(--max-"):
        memory.take(states, np.full((1, 2), 7), memory.empty((1, 2, 2)), 0)  # there are no such


@pytest.mark.parametrize("name", onnx_states.GRAPHS)
def test_its_graphs_are_what_they_are_said_to_be(name: str) -> None:
    assert device_graph(name) == onnx_states.GRAPHS[name]().SerializeToString()
    onnx.checker.check_model(onnx.load_from_string(device_graph(name)), full_check=True)
