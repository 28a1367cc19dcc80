"""Ranges of activations: found on the rows that each graph sees, and on no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    ATTENTION_MASK,
    DENSE,
    HIDDEN,
    INPUT_IDS,
    SAMPLES,
    TOKEN_TYPE_IDS,
    segment_name,
)
from trbert_deploy.bundle.samples import write_samples
from trbert_deploy.errors import ConfigError
from trbert_deploy.exporters import calibration
from trbert_deploy.exporters.calibration import (
    activation_sizes,
    calibration_rows,
    eight_bit_models,
    judging_rows,
)
from trbert_deploy.exporters.onnx.static_quantization import EIGHT_BITS, product_inputs
from trbert_deploy.files import sha256
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.token_state import TokenRow


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def models(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    graphs = bundle.manifest.graphs
    return {graph.name: onnx.load(bundle.graph_path(graph.name)) for graph in graphs}


def states_of(model: onnx.ModelProto, row: TokenRow) -> dict[str, np.ndarray]:
    """What the products of a graph over all of a text's tokens are fed, by ONNX Runtime alone."""
    names = product_inputs(model.graph)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = {
        INPUT_IDS: row.input_ids[None],
        TOKEN_TYPE_IDS: row.token_type_ids[None],
        ATTENTION_MASK: np.ones((1, len(row)), np.bool_),
    }
    wanted = {value.name: feed[value.name] for value in model.graph.input}
    return dict(zip(names, session.run(names, wanted), strict=True))


def test_sizes_are_those_of_the_rows(bundle: Bundle, models: dict[str, onnx.ModelProto]) -> None:
    rows = calibration_rows(bundle, bundle.samples())[:3]
    sizes = activation_sizes(bundle, models, rows)
    for name in (segment_name(0), DENSE):
        states = [states_of(models[name], row) for row in rows]
        assert sizes[name].keys() == states[0].keys()
        for tensor, largest in sizes[name].items():
            every = np.concatenate([np.abs(each[tensor][0]) for each in states])
            np.testing.assert_allclose(largest, every.max(axis=0), rtol=1e-4, atol=1e-5)


def test_a_segment_behind_cuts_is_measured_on_survivors(
    bundle: Bundle, models: dict[str, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    call = calibration._ObservedGraph.__call__

    def counted(graph: object, inputs: dict[str, np.ndarray]) -> object:
        if HIDDEN in inputs:
            seen.append(inputs[HIDDEN].shape[0] * inputs[HIDDEN].shape[1])
        return call(graph, inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(calibration._ObservedGraph, "__call__", counted)
    rows = calibration_rows(bundle, bundle.samples())
    activation_sizes(bundle, models, rows)
    kept = load(bundle.path, threads=1).run(rows)
    survivors = sum(len(places) for result in kept for places in result.kept)
    assert sum(seen) == survivors  # of both cuts, and no padding
    assert survivors < 2 * sum(map(len, rows))


def test_texts_that_judge_are_others(bundle: Bundle) -> None:
    samples = bundle.samples()
    assert len(samples) == 6
    tokenizer = load(bundle.path, threads=1)

    def starts(texts: list[str]) -> set[tuple[int, ...]]:
        return {tuple(row.input_ids[:6].tolist()) for row in tokenizer.tokenize(texts)}

    found = {
        tuple(row.input_ids[:6].tolist())
        for row in calibration_rows(bundle, bundle.samples())
        if len(row) > 8
    }
    judged = {
        tuple(row.input_ids[:6].tolist()) for row in judging_rows(bundle, bundle.samples())(16, 3)
    }
    assert found == starts(samples[::2])
    assert judged == starts(samples[1::2])
    assert {len(row) for row in calibration_rows(bundle, bundle.samples())} == {
        16,
        64,
    }  # the longest it takes


def with_samples(own_bundle: Path, texts: list[str]) -> Bundle:
    """A bundle with these sample texts, or with none."""
    bundle = Bundle.open(own_bundle)
    files = dict(bundle.manifest.files)
    del files[SAMPLES]
    if texts:
        write_samples(own_bundle / SAMPLES, texts)
        files[SAMPLES] = sha256(own_bundle / SAMPLES)
    return replace(bundle, manifest=replace(bundle.manifest, files=files))


def test_one_text_finds_ranges_and_judges(own_bundle: Path) -> None:
    bundle = with_samples(own_bundle, ["the film tells of a sailor who returns to his village"])
    rows, judged = (
        calibration_rows(bundle, bundle.samples()),
        judging_rows(bundle, bundle.samples())(16, 1),
    )
    assert np.array_equal(rows[0].input_ids, judged[0].input_ids)


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_without_texts_there_are_no_ranges(
    own_bundle: Path, models: dict[str, onnx.ModelProto], precision: str
) -> None:
    with pytest.raises(
        ConfigError, match=rf"no sample texts, on which {precision} .* build with --fp16$"
    ) as caught:
        eight_bit_models(with_samples(own_bundle, []), models, precision)
    assert "\n" not in str(caught.value)


def test_every_graph_gets_its_own(bundle: Bundle, models: dict[str, onnx.ModelProto]) -> None:
    made = eight_bit_models(bundle, models, "int8")
    assert made.keys() == models.keys()
    for name, model in made.items():
        operators = [node.op_type for node in model.graph.node]
        assert operators.count("QuantizeLinear") == len(product_inputs(models[name].graph)) > 0
