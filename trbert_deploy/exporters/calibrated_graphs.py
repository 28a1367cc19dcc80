"""Graphs for OpenVINO that multiply in 8 bits, by ranges of activations found on sample texts.

A runtime that must find a range first reads every activation once more. These have theirs in the
graph (``onnx/static_quantization.py``), and are written when the others are: calibration runs them.
Since segments and dense model see other tokens, each has ranges, and so weights, of its own; they
lie in a file beside the bundle's, which nobody else reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_tensor

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    CALIBRATED_WEIGHTS,
    MASKED,
    QUANTIZED,
    UNMASKED,
    WITH_RANGES,
)
from trbert_deploy.bundle.samples import Sample
from trbert_deploy.exporters.calibration import activation_sizes, calibration_rows
from trbert_deploy.exporters.onnx.static_quantization import product_weights, static_graph
from trbert_deploy.exporters.onnx.weights import SharedWeights
from trbert_deploy.files import sha256


def add_calibrated(bundle: Bundle, texts: Sequence[Sample]) -> Bundle:
    """Write the variants with ranges (``WITH_RANGES``) beside a bundle's other graphs.

    Args:
        bundle: whose directory they are written to.
        texts: sample texts; every other one is used.

    Returns:
        The bundle with them; its manifest is not written.
    """
    graphs = bundle.manifest.graphs
    whole = {graph.name: onnx.load(bundle.graph_path(graph.name)) for graph in graphs}
    sizes = activation_sizes(bundle, whole, calibration_rows(bundle, texts))
    del whole  # which may be large
    weights = SharedWeights({})
    made = {}
    for graph in graphs:
        for variant, source in zip(WITH_RANGES, (UNMASKED, MASKED), strict=True):
            model = _with_products(bundle, graph.name, source)
            rounded = static_graph(model, "int8", sizes[graph.name])
            weights.take(rounded, adopt=QUANTIZED)
            made[graph.file_of(variant)] = rounded
    weights.save(bundle.path / CALIBRATED_WEIGHTS)
    for file, model in made.items():
        weights.link(model)
        onnx.save(model, bundle.path / file)
    described = tuple(replace(each, variants=(*each.variants, *WITH_RANGES)) for each in graphs)
    digests = {name: sha256(bundle.path / name) for name in (CALIBRATED_WEIGHTS, *made)}
    files = {**bundle.manifest.files, **digests}
    manifest = replace(bundle.manifest, graphs=described, files=files)
    return Bundle.of(bundle.path, manifest, verify=False)


def remove_calibrated(bundle: Bundle) -> None:
    """Remove what ``add_calibrated`` wrote.

    Args:
        bundle: what it gave.
    """
    written = {file for each in bundle.manifest.graphs for file in map(each.file_of, WITH_RANGES)}
    for name in (CALIBRATED_WEIGHTS, *written):
        (bundle.path / name).unlink()


def _with_products(bundle: Bundle, name: str, variant: str) -> onnx.ModelProto:
    """A graph of which those weights are loaded that become 8 bits."""
    model = onnx.load(bundle.graph_path(name, variant), load_external_data=False)
    wanted = product_weights(model.graph)
    for tensor in model.graph.initializer:
        if tensor.name in wanted and tensor.data_location == TensorProto.EXTERNAL:
            load_external_data_for_tensor(tensor, str(bundle.path))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    return model
