"""Engines of 8 bits for the families whose graphs differ most: real ones, which need no GPU."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from conftest import LABELS, make_texts
from hf_folders import family_folder

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import DENSE
from trbert_deploy.exporters.calibration import activation_sizes
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.exporters.onnx.precision import half_graph
from trbert_deploy.exporters.onnx.static_quantization import EIGHT_BITS, static_graph
from trbert_deploy.exporters.tensorrt.builder import build_engine
from trbert_deploy.runtime.backends.tensorrt.engine_set import Profile
from trbert_deploy.runtime.backends.tensorrt.library import load_tensorrt
from trbert_deploy.runtime.loading import load

pytest.importorskip("tensorrt_rtx")

#: Family -> products with weights in a layer of it; of DeBERTa's, those of positions know no text.
PRODUCTS = {"distilbert": 6, "mpnet": 6, "modernbert": 7, "deberta-v2": 6}


@pytest.mark.parametrize("family", PRODUCTS)
def test_engines_of_a_family(family: str, tokenizer_dir: Path, tmp_path: Path) -> None:
    folder = family_folder(tmp_path / "folder", tokenizer_dir, family, LABELS)
    export_bundle(folder, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    model = onnx.load(bundle.graph_path(DENSE))
    rows = load(bundle.path, threads=1).tokenize([row["text"] for row in make_texts(6)])
    sizes = activation_sizes(bundle, {DENSE: model}, rows)[DENSE]
    for precision, bits in EIGHT_BITS.items():
        half = half_graph(static_graph(model, precision, sizes), precision)
        onnx.checker.check_model(half, full_check=True)
        weights = [
            tensor
            for tensor in half.graph.initializer
            if tensor.data_type == bits.element and len(tensor.dims) == 2
        ]
        layers = bundle.manifest.encoder.num_layers
        assert len(weights) == layers * PRODUCTS[family]
        profiles = [Profile(1, 32, 1, 2, 4)]
        assert build_engine(load_tensorrt("rtx"), half.SerializeToString(), profiles, "8.9").data
