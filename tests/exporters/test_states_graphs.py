"""Graphs of states: in the bundle beside all others, and on every backend what transformers has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CheckpointMaker, make_texts
from transformers import AutoModel

from trbert_deploy import load
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    ATTENTION_MASK,
    DIGEST,
    HIDDEN_OUT,
    INPUT_IDS,
    MANIFEST,
    TOKEN_TYPE_IDS,
    VARIANTS,
    Manifest,
    _digest,
)
from trbert_deploy.errors import BundleError, ConfigError, ParityError
from trbert_deploy.exporters.checks.parity import compare_graphs
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.torch_backend import TorchBackend, load_model
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.backends.registry import open_backend
from trbert_deploy.runtime.samples import row_maker
from trbert_deploy.runtime.tokenizing import tokenizer_of

#: Behind the embeddings, inside and behind the last cut, and behind all layers.
LAYERS = (0, 2, 4)


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "bundle"
    export_bundle(tiny_checkpoint, target, states_after=(4, 0, 2, 2), int8=True, fp16=True)
    return target


def batch(seed: int = 0, shape: tuple[int, int] = (3, 11)) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    return {
        INPUT_IDS: chance.integers(5, 60, shape),
        TOKEN_TYPE_IDS: np.zeros(shape, np.int64),
        ATTENTION_MASK: np.arange(shape[1]) < np.array([[shape[1]], [4], [1]]),
    }


def test_they_stand_beside_the_other_graphs(bundle: Path, tiny_bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert [graph.name for graph in manifest.states] == ["states_0", "states_2", "states_4"]
    assert manifest.states_after == LAYERS
    assert manifest.graphs[0].name == "segment_0" and len(manifest.graphs) == 4
    for graph in manifest.states:
        assert graph.variants == VARIANTS and graph.answers == (HIDDEN_OUT,)
        assert graph.token_inputs == (INPUT_IDS, TOKEN_TYPE_IDS) and graph.takes_mask
    checked = [entry["graph"] for entry in manifest.parity["graphs"]]
    assert checked[-3:] == ["states_0", "states_2", "states_4"]
    added = sum(path.stat().st_size for path in bundle.glob("states_*.onnx"))
    assert added < 3 * 3 * 100_000  # the weights are those that are there


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
@pytest.mark.parametrize("layer", LAYERS)
def test_states_are_those_of_transformers(
    bundle: Path, backend: str, layer: int, theirs: list[np.ndarray]
) -> None:
    opened = Bundle.open(bundle)
    expected = theirs[layer]
    precision = "fp32" if backend == "openvino" else None
    graph = open_backend(backend, opened, BackendOptions(1, precision)).graph(f"states_{layer}")
    mask = batch()[ATTENTION_MASK]
    found = graph(batch())[HIDDEN_OUT]
    np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5)
    whole = {name: values[:1] for name, values in batch().items() if name != ATTENTION_MASK}
    np.testing.assert_allclose(graph(whole)[HIDDEN_OUT], expected[:1], atol=2e-5)


@pytest.fixture(scope="module")
def theirs(tiny_checkpoint: Path) -> list[np.ndarray]:
    """Hidden states of the batch, as transformers computes them."""
    model = AutoModel.from_pretrained(tiny_checkpoint).eval()
    inputs = {name: torch.from_numpy(values) for name, values in batch().items()}
    with torch.inference_mode():
        return [each.numpy() for each in model(**inputs, output_hidden_states=True).hidden_states]


def test_a_fault_in_one_is_found(bundle: Path) -> None:
    """The gate that an export passes, with a graph that computes one layer too few."""
    opened = Bundle.open(bundle)
    model = load_model(opened)

    class Shallow(TorchBackend):
        def _open(self, name: str) -> Any:
            return super()._open("states_3" if name == "states_4" else name)

    shallow = Shallow(model)
    gates = compare_graphs(
        TorchBackend(model),
        shallow,
        model.spec,
        model.reduction,
        row_maker(tokenizer_of(opened), model.spec, []),
        [(1, 2), (3, 24)],
        states_after=LAYERS,
    )
    passed = []
    with pytest.raises(ParityError, match="graph states_4, batch 1, length 2: hidden_out differs"):
        for parity in gates:
            passed.append(parity.graph)
    assert passed[-2:] == ["states_0", "states_2"]


def test_the_chain_answers_as_without_them(bundle: Path, tiny_bundle: Path) -> None:
    texts = [row["text"] for row in make_texts(4)]
    for one, other in zip(load(bundle)(texts), load(tiny_bundle)(texts), strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)


@pytest.mark.parametrize("cuts", ["none", "0.5"])
def test_they_need_no_cut_at_their_layer(
    make_checkpoint: CheckpointMaker, tmp_path: Path, cuts: str
) -> None:
    """Behind all layers of a model without cuts they are the states that its head reads."""
    checkpoint = make_checkpoint(cuts)
    report = export_bundle(checkpoint, tmp_path / "bundle", states_after=[4])
    assert report.graphs[-1].graph == "states_4"
    graph = OnnxRuntimeBackend(Bundle.open(tmp_path / "bundle"), BackendOptions(1)).graph
    model = AutoModel.from_pretrained(checkpoint).eval()
    inputs = {name: torch.from_numpy(values) for name, values in batch().items()}
    with torch.inference_mode():
        expected = model(**inputs).last_hidden_state.numpy()
    mask = batch()[ATTENTION_MASK]
    np.testing.assert_allclose(
        graph("states_4")(batch())[HIDDEN_OUT][mask], expected[mask], atol=2e-5
    )


@pytest.mark.parametrize("layers", [(5,), (0, 9), (-1,)])
def test_a_layer_that_there_is_not_is_refused_before_anything_is_made(
    tiny_checkpoint: Path, tmp_path: Path, layers: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match=rf"after is {layers[-1]}: expected .* from 0 to 4$"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", states_after=layers)
    assert list(tmp_path.iterdir()) == []


def test_which_graph_is_asked_for(bundle: Path, tiny_bundle: Path) -> None:
    opened, without = Bundle.open(bundle), Bundle.open(tiny_bundle)
    assert opened.require_states().name == "states_4"
    assert opened.require_states(0).name == "states_0"
    for asked, layer, match in (
        (
            opened,
            1,
            r"states after layer 1 \(there are 0, 2, 4\): .* --states-after 1$",
        ),
        (without, None, r"no graph of states \(there are none\): export .* --states-after K$"),
        (without, 4, r"no graph of states after layer 4 \(there are none\): .*--states-after 4$"),
        (without, 5, r"after is 5: expected a whole number from 0 to 4$"),
    ):
        with pytest.raises(ConfigError, match=match):
            asked.require_states(layer)


def read(bundle: Path, **changes: Any) -> Manifest:
    content = {**json.loads((bundle / MANIFEST).read_text()), **changes}
    del content[DIGEST]
    return Manifest.from_json({**content, DIGEST: _digest(content)})


def test_the_manifest_is_read_again_and_needs_none(bundle: Path, tiny_bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert read(bundle) == manifest
    assert "states" not in json.loads((tiny_bundle / MANIFEST).read_text())
    assert Bundle.open(tiny_bundle).manifest.states == ()
    assert read(bundle, states=[], states_after=[]).states_after == ()


def test_a_manifest_whose_layers_do_not_fit_is_refused(bundle: Path) -> None:
    written = json.loads((bundle / MANIFEST).read_text())
    graphs = written["states"]
    wrong = {**graphs[2], "inputs": written["graphs"][1]["inputs"]}
    for changes, match in (
        ({"states_after": [0, 2, 5]}, "expected a whole number from 0 to 4"),
        ({"states_after": [2, 0, 4]}, "layers 2, 0, 4: expected each one once, in ascending"),
        (
            {"states_after": [0, 2]},
            "states are states_0, .*: expected states_0, states_2",
        ),
        ({"states": []}, "graphs of states are none: expected states_0, states_2, states_4"),
        ({"states": [*graphs[:2], wrong]}, "states_4 takes hidden, .*: expected input_ids"),
        ({"states": 3}, "states of manifest is 3"),
    ):
        with pytest.raises(BundleError, match=f"manifest is damaged .*{match}"):
            read(bundle, **changes)


def test_a_missing_graph_is_named(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (copy / "states_2.fused.onnx").unlink()
    with pytest.raises(BundleError, match=r"states_2\.fused\.onnx is missing"):
        Bundle.open(copy)
