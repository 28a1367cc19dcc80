"""Segments to ONNX graphs with dynamic batch and length that share one file of weights."""

from __future__ import annotations

import hashlib
import json
import logging
import struct
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from trbert_deploy.bundle.manifest import (
    ATTENTION_MASK,
    DENSE,
    DEQUANTIZED,
    HIDDEN,
    HIDDEN_OUT,
    INPUT_IDS,
    INT8,
    KEEP_LOGIT,
    QUANTIZED,
    TOKEN_TYPE_IDS,
    TRANSPOSED,
    UNMASKED,
    WEIGHTS,
    GraphDescription,
    TensorDescription,
    segment_name,
)
from trbert_deploy.errors import ParityError
from trbert_deploy.exporters.onnx.quantization import dequantized, quantized
from trbert_deploy.exporters.onnx.variants import fused_variant, write_variants
from trbert_deploy.modeling.checkpoints.checkpoint import write_safetensors
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.segments import FirstSegment, segment_module
from trbert_deploy.tasks.text_classification import LOGITS

#: The first opset with an Attention operator; earlier ones export attention as many small ones.
OPSET = 23
TRACED_BATCH = 2
TRACED_LENGTH = 24

#: Tensors below this size stay inside the graph (shapes, indices, scalars).
_INLINE_BYTES = 1024


def export_graphs(
    model: ReducedModel, directory: Path, int8: bool = False
) -> Iterator[GraphDescription]:
    """Write the file of weights, one graph per segment, and the dense model, in all their variants.

    Args:
        model: in eval mode, float32.
        directory: receives ``weights.safetensors``, ``segment_0.onnx`` ... and ``dense.onnx``.
        int8: write the variants with 8-bit weights, too.

    Yields:
        A description of each graph when it is traced; all files are there at the end.

    Raises:
        ParityError: the exporter fixed a dimension that must stay dynamic, or wrote attention in
            another way than expected.
    """
    modules = {
        segment_name(segment.index): segment_module(model, segment.index)
        for segment in model.segments
    }
    if len(modules) == 1:  # without a cut the only segment is the dense model itself
        modules.clear()
    modules[DENSE] = FirstSegment(model, dense=True)
    weights = SharedWeights(model)
    protos = {}
    descriptions = {}
    rounded = {}
    for name, module in modules.items():
        protos[name] = _export(module, model)
        if int8:
            fused = fused_variant(protos[name], model.spec.num_heads)
            with tempfile.TemporaryDirectory() as scratch:
                rounded[name] = quantized(fused, f"{scratch}/{name}.onnx")
            weights.take(rounded[name], adopt=True)
        weights.take(protos[name])
        descriptions[name] = _describe(name, protos[name])
        yield descriptions[name]
    weights.save(directory / WEIGHTS)
    for name, proto in protos.items():
        weights.link(proto)
        variants = dict(write_variants(proto, model.spec.num_heads))
        if int8:
            weights.link(rounded[name])
            variants[INT8] = rounded[name]
            variants[DEQUANTIZED] = dequantized(variants[UNMASKED], rounded[name])
        for variant, written in variants.items():
            onnx.save(written, directory / descriptions[name].file_of(variant))


def _export(module: nn.Module, model: ReducedModel) -> onnx.ModelProto:
    """Trace one module into an ONNX model that still carries its weights."""
    batch = torch.export.Dim("B", min=1, max=65536)
    length = torch.export.Dim("S", min=1, max=model.spec.max_positions)
    first = isinstance(module, FirstSegment)
    is_last = module.dense if first else model.segments[int(module.index)].is_last  # type: ignore[arg-type]
    shape = (TRACED_BATCH, min(TRACED_LENGTH, model.spec.max_positions))
    mask = torch.ones(shape, dtype=torch.bool)
    mask[-1, shape[1] // 2 :] = False
    inputs: dict[str, Tensor]
    if first:
        ids = torch.randint(0, model.spec.vocab_size, shape)
        inputs = {INPUT_IDS: ids, TOKEN_TYPE_IDS: torch.zeros_like(ids), ATTENTION_MASK: mask}
    else:
        inputs = {HIDDEN: torch.randn(*shape, model.spec.hidden_size), ATTENTION_MASK: mask}
    with _quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=[HIDDEN_OUT, LOGITS if is_last else KEEP_LOGIT],
            opset_version=OPSET,
            dynamic_shapes={name: {0: batch, 1: length} for name in inputs},
            dynamo=True,
            verbose=False,
        )
        assert program is not None  # dynamo=True always returns a program
    proto: onnx.ModelProto = program.model_proto
    # The exporter notes the source line of every node: of no use to a reader of the bundle.
    del proto.metadata_props[:], proto.graph.metadata_props[:]
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        del part.metadata_props[:]
    return proto


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence notes that torch's exporter addresses to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class SharedWeights:
    """The weights of several graphs, stored once in a safetensors file.

    The graphs refer to it as ONNX external data, by offset. Exporters transpose the weights
    of linear layers; such a tensor is stored as the graphs want it, so that a runtime can map
    it from the disk as it is, under its name with ``TRANSPOSED`` behind it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {
            name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()
        }
        self._known: dict[str, str] = {}
        for name, tensor in self._parameters.items():
            self._known.setdefault(_digest(tensor.numpy()), name)
            if tensor.ndim == 2:
                self._known.setdefault(_digest(tensor.numpy().T), name + TRANSPOSED)
        self._used: set[str] = set()

    def take(self, proto: onnx.ModelProto, adopt: bool = False) -> None:
        """Empty the graph's large initializers and note which weights they are.

        Args:
            adopt: store those that are no parameters too, under a name with ``QUANTIZED`` before
                it; else they stay in the graph.
        """
        for initializer in proto.graph.initializer:
            array = numpy_helper.to_array(initializer)
            if array.nbytes < _INLINE_BYTES:
                continue
            digest = _digest(array)
            name = self._known.get(digest)
            if name is None and adopt:
                name = self._known[digest] = f"{QUANTIZED}{len(self._known)}"
                self._parameters[name] = torch.from_numpy(array.copy())
            if name is None:
                continue
            self._used.add(name)
            initializer.ClearField("raw_data")
            initializer.data_location = TensorProto.EXTERNAL
            initializer.external_data.add(key="location", value=name)

    def save(self, path: Path) -> None:
        """Write every parameter once, in the orientation that the graphs use."""
        tensors = {}
        for name, tensor in self._parameters.items():
            turned = name + TRANSPOSED in self._used and name not in self._used
            tensors[name + TRANSPOSED if turned else name] = (
                tensor.T.contiguous() if turned else tensor
            )
            if name in self._used and name + TRANSPOSED in self._used:
                tensors[name + TRANSPOSED] = tensor.T.contiguous()
        write_safetensors(path, tensors)
        with path.open("rb") as file:
            (header_length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(header_length))
        base = 8 + header_length
        self._places = {
            name: (base + header[name]["data_offsets"][0], base + header[name]["data_offsets"][1])
            for name in tensors
        }
        self._file = path.name

    def link(self, proto: onnx.ModelProto) -> None:
        """Point the emptied initializers at their places in the file."""
        for initializer in proto.graph.initializer:
            if initializer.data_location != TensorProto.EXTERNAL:
                continue
            start, stop = self._places[initializer.external_data[0].value]
            del initializer.external_data[:]
            for key, value in {
                "location": self._file,
                "offset": start,
                "length": stop - start,
            }.items():
                initializer.external_data.add(key=key, value=str(value))


def _digest(array: np.ndarray) -> str:
    header = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def _describe(name: str, proto: onnx.ModelProto) -> GraphDescription:
    """Names, dtypes and shapes of a graph's inputs and outputs.

    Raises:
        ParityError: batch or length is not dynamic.
    """
    graph = proto.graph
    for tensor in (*graph.input, *graph.output):
        shape = _shape(tensor)
        dynamic = shape[:1] if tensor.name == LOGITS else shape[:2]
        if any(isinstance(size, int) for size in dynamic):
            raise ParityError(
                f"graph {name}: tensor {tensor.name} came out with the fixed shape {list(shape)}; "
                "expected a dynamic batch and length"
            )
    return GraphDescription(
        name,
        tuple(_tensor(value) for value in graph.input),
        tuple(_tensor(value) for value in graph.output),
    )


def _tensor(value: Any) -> TensorDescription:
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return TensorDescription(value.name, str(dtype), _shape(value))


def _shape(value: Any) -> tuple[str | int, ...]:
    return tuple(
        dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim
    )
