"""The variants of a graph: what each contains, and that all of them agree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import DENSE, FUSED, MASKED, UNMASKED, VARIANTS, segment_name
from trbert_deploy.errors import ParityError
from trbert_deploy.exporters.onnx.variants import write_variants

NAMES = [segment_name(0), segment_name(1), segment_name(2), DENSE]
#: Layers of each graph of the tiny bundle, whose cuts stand before layers 1 and 2 of 4.
LAYERS = dict(zip(NAMES, (1, 1, 2, 4), strict=True))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


@pytest.mark.parametrize("name", NAMES)
def test_each_variant_has_the_attention_of_its_runtime(tiny_bundle: Path, name: str) -> None:
    bundle = Bundle.open(tiny_bundle)
    counts = {variant: operators(bundle.graph_path(name, variant)) for variant in VARIANTS}
    for variant, attention, fused in ((MASKED, 1, 0), (UNMASKED, 1, 0), (FUSED, 0, 1)):
        assert counts[variant]["Attention"] == attention * LAYERS[name]
        assert counts[variant]["MultiHeadAttention"] == fused * LAYERS[name]
    assert counts[FUSED]["Transpose"] == 0 < counts[UNMASKED]["Transpose"]
    for variant in VARIANTS:
        graph = onnx.load(bundle.graph_path(name, variant), load_external_data=False).graph
        assert ("attention_mask" in {value.name for value in graph.input}) == (variant == MASKED)
        used = {name for node in graph.node for name in node.input}
        assert {tensor.name for tensor in graph.initializer} <= used


@pytest.mark.parametrize("name", NAMES)
def test_all_variants_agree_without_padding(tiny_bundle: Path, name: str) -> None:
    bundle = Bundle.open(tiny_bundle)
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (2, 7), (3, 64)):
        if name in (segment_name(0), DENSE):
            ids = rng.integers(0, 256, shape)
            inputs = {"input_ids": ids, "token_type_ids": rng.integers(0, 2, shape)}
        else:
            inputs = {"hidden": rng.standard_normal((*shape, 32), np.float32)}
        mask = {"attention_mask": np.ones(shape, np.bool_)}
        outputs = {}
        for variant in VARIANTS:
            session = onnxruntime.InferenceSession(str(bundle.graph_path(name, variant)))
            outputs[variant] = session.run(None, inputs | (mask if variant == MASKED else {}))
        for variant in (UNMASKED, FUSED):
            for expected, received in zip(outputs[MASKED], outputs[variant], strict=True):
                np.testing.assert_allclose(received, expected, atol=2e-5)


def test_attention_in_an_unknown_shape_is_refused(tiny_bundle: Path) -> None:
    model = onnx.load(Bundle.open(tiny_bundle).graph_path(DENSE), load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Transpose":
            node.op_type = "Identity"
    with pytest.raises(ParityError, match="exported with Identity beside it, expected Transpose"):
        dict(write_variants(model, 4))
