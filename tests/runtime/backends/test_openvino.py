"""OpenVINO answers as ONNX Runtime does, in float32 exactly enough, in bfloat16 roughly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import make_texts
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.batching import Padding
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.cli import cli
from trbert_deploy.errors import BundleError, ConfigError
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.backends.openvino import OpenVinoBackend, one_of_few_lengths
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.pipeline import Pipeline

TEXTS = [row["text"] for row in make_texts(24, seed=5)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_of_one_token_spoil_nothing(tiny_bundle: Path, precision: str) -> None:
    try:
        backend = OpenVinoBackend(Bundle.open(tiny_bundle), BackendOptions(1, precision))
    except ConfigError:
        pytest.skip("this processor does not compute in bfloat16")
    reference = OnnxRuntimeBackend(Bundle.open(tiny_bundle), BackendOptions(1))
    for name, states in (("dense", False), ("segment_1", True)):
        generator = np.random.default_rng(0)
        for shape in ((1, 1), (3, 1), (1, 8), (3, 20)):
            inputs: dict[str, np.ndarray] = {
                "input_ids": generator.integers(5, 200, shape),
                "token_type_ids": np.zeros(shape, np.int64),
            }
            if states:
                inputs = {"hidden": generator.standard_normal((*shape, 32), np.float32)}
            expected = reference.graph(name)(inputs)
            for output, received in backend.graph(name)(inputs).items():
                difference = np.abs(received - expected[output]).max()
                bound = 1e-4 if precision == "fp32" else 5e-2
                assert difference <= bound * max(1.0, np.abs(expected[output]).max()), shape


@given(length=st.integers(1, 100_000))
def test_rows_are_padded_to_few_lengths(length: int) -> None:
    padded = one_of_few_lengths(length)
    assert length <= padded <= max(16, length + 15, 9 * length // 8)
    assert one_of_few_lengths(padded) == padded <= one_of_few_lengths(length + 1)
    assert len({one_of_few_lengths(each) for each in range(1, 2049)}) == 40


def test_padding_is_no_part_of_an_answer(tiny_bundle: Path, exact: Pipeline) -> None:
    """At every length, of every graph, and never longer than the model takes."""
    backend = exact.chain.backend
    assert isinstance(backend, OpenVinoBackend)
    reference = OnnxRuntimeBackend(Bundle.open(tiny_bundle), BackendOptions(1))
    generator = np.random.default_rng(0)
    for name in ("dense", "segment_0", "segment_1", "segment_2"):
        graph = backend.graph(name)
        seen: set[int] = set()
        call = graph._call

        def noted(variant: str, call: Any = call, seen: set[int] = seen) -> Any:
            found = call(variant)

            class Request:
                def set_tensor(self, place: str, tensor: Any) -> None:
                    seen.add(tensor.shape[1])
                    found.request.set_tensor(place, tensor)

                infer = found.request.infer
                get_output_tensor = found.request.get_output_tensor

            return type(found)(Request(), found.outputs)

        graph._call = noted  # type: ignore[method-assign]
        for length in range(1, 65):
            shape = (1 + length % 3, length)
            inputs: dict[str, np.ndarray] = {
                "input_ids": generator.integers(5, 200, shape),
                "token_type_ids": generator.integers(0, 2, shape),
            }
            if name in ("segment_1", "segment_2"):
                inputs = {"hidden": generator.standard_normal((*shape, 32), np.float32)}
            expected = reference.graph(name)(inputs)
            for output, received in graph(inputs).items():
                assert received.shape == expected[output].shape
                np.testing.assert_allclose(received, expected[output], atol=1e-4, rtol=1e-4)
        assert seen == {16, 32, 48, 64}


@pytest.fixture(scope="module")
def exact(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle, "openvino", threads=1, precision="fp32")


def test_float32_is_as_exact_as_onnx_runtime(exact: Pipeline, tiny_bundle: Path) -> None:
    reference = load(tiny_bundle, threads=1)
    rows = reference.tokenize(TEXTS)
    for dense in (False, True):
        for ours, theirs in zip(
            exact.run(rows, dense=dense), reference.run(rows, dense=dense), strict=True
        ):
            assert (
                np.abs(ours.outputs["logits"] - theirs.outputs["logits"]).max()
                <= 1e-4 * np.abs(theirs.outputs["logits"]).max()
            )
            for kept, expected in zip(ours.kept, theirs.kept, strict=True):
                assert np.array_equal(kept, expected)


def test_a_row_is_the_same_alone_and_among_others(exact: Pipeline) -> None:
    rows = exact.tokenize(TEXTS)
    for row, together in zip(rows, exact.run(rows), strict=True):
        (alone,) = exact.run([row])
        assert np.allclose(together.outputs["logits"], alone.outputs["logits"], atol=1e-5)
        assert all(map(np.array_equal, together.kept, alone.kept))


def test_padded_batches_take_the_mask(exact: Pipeline) -> None:
    rows = exact.tokenize(TEXTS)
    chain = exact.chain
    padded = Chain(chain.backend, chain.reduction, 4, padding=Padding(share=1.0))
    for ours, theirs in zip(padded.run(rows), exact.run(rows), strict=True):
        assert np.allclose(ours.outputs["logits"], theirs.outputs["logits"], atol=1e-5)
        assert all(map(np.array_equal, ours.kept, theirs.kept))


def test_threads_share_one_pipeline(exact: Pipeline) -> None:
    rows = exact.tokenize(TEXTS)
    expected = [result.outputs["logits"] for result in exact.run(rows)]
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(exact.run, [rows] * 16):
            assert np.allclose(
                [result.outputs["logits"] for result in results], expected, atol=1e-6
            )


def test_results_outlive_the_next_call(exact: Pipeline) -> None:
    first, second = exact.tokenize(TEXTS[:2])
    (result,) = exact.run([first])
    before = result.outputs["logits"].copy()
    exact.run([second])
    assert np.array_equal(result.outputs["logits"], before)


def test_the_processor_chooses_the_precision(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def precision(wanted: str | None = None) -> str:
        pipeline = load(tiny_bundle, "openvino", precision=wanted)
        return pipeline.chain.backend.description["precision"]

    monkeypatch.setattr(OpenVinoBackend, "_has_bf16", lambda backend: True)
    assert precision() == "bf16" and precision("fp32") == "fp32"
    monkeypatch.setattr(OpenVinoBackend, "_has_bf16", lambda backend: False)
    assert precision() == "fp32"
    with pytest.raises(ConfigError, match="in bfloat16: run with --precision fp32"):
        precision("bf16")


def test_bfloat16_labels_as_float32_does(exact: Pipeline, tiny_bundle: Path) -> None:
    if not OpenVinoBackend._has_bf16(exact.chain.backend):  # type: ignore[arg-type]
        pytest.skip("this processor does not compute in bfloat16")
    rounded = load(tiny_bundle, "openvino", precision="bf16")
    labels = [prediction.label for prediction in rounded(TEXTS)]
    agreement = np.mean(
        [label == one.label for label, one in zip(labels, exact(TEXTS), strict=True)]
    )
    assert agreement >= 0.9


@pytest.mark.parametrize(("backend", "precision"), [("onnxruntime", "bf16"), ("openvino", "fp8")])
def test_a_precision_that_a_backend_lacks_is_refused(
    tiny_bundle: Path, backend: str, precision: str
) -> None:
    arguments = ["predict", str(tiny_bundle), "--text", "a", "--backend", backend]
    done = CliRunner().invoke(cli, [*arguments, "--precision", precision])
    assert isinstance(done.exception, ConfigError)
    assert f"backend {backend} cannot be asked for {precision}: expected " in str(done.exception)


def test_a_damaged_graph_is_named(own_bundle: Path) -> None:
    (own_bundle / "segment_0.unmasked.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"OpenVINO cannot load .*segment_0\.unmasked\.onnx: "):
        load(own_bundle, "openvino", verify=False)
