"""Segments to ONNX graphs with dynamic batch and length that share one file of weights."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor

from trbert_deploy.bundle.manifest import (
    ATTENTION_MASK,
    DENSE,
    DEQUANTIZED,
    HEAD,
    HIDDEN,
    HIDDEN_OUT,
    INPUT_IDS,
    INT8,
    KEEP_LOGIT,
    POSITIONS,
    TOKEN_TYPE_IDS,
    UNMASKED,
    VARIANTS,
    WEIGHTS,
    GraphDescription,
    TensorDescription,
    dropped_name,
    segment_name,
)
from trbert_deploy.errors import ParityError
from trbert_deploy.exporters.onnx.quantization import dequantized, quantized
from trbert_deploy.exporters.onnx.variants import fused_variant, write_variants
from trbert_deploy.exporters.onnx.weights import SharedWeights
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.segments import (
    DroppedModule,
    HeadModule,
    SegmentModule,
    dense_module,
    segment_module,
)
from trbert_deploy.tasks.registry import task_of

#: The first opset with an Attention operator; earlier ones export attention as many small ones.
OPSET = 23
TRACED_BATCH = 2
TRACED_LENGTH = 24

Module = SegmentModule | DroppedModule | HeadModule


def export_graphs(
    model: ReducedModel, directory: Path, int8: bool = False
) -> Iterator[GraphDescription]:
    """Write the file of weights, one graph per segment, the dense model, and what dropped tokens
    say where they take part in the answer, or those that are asked for, in all their variants.

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
    modules: dict[str, Module] = {
        segment_name(segment.index): segment_module(model, segment) for segment in model.segments
    }
    if len(modules) == 1:  # without a cut the only segment is the dense model itself
        modules.clear()
    modules[DENSE] = dense_module(model)
    if model.hears_dropped:
        for segment in model.segments[:-1]:
            modules[dropped_name(segment.index)] = DroppedModule(model, segment.index)
    if model.asked_token is not None:
        modules[HEAD] = HeadModule(model)
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
        descriptions[name] = _describe(name, protos[name], model, int8)
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


def _export(module: Module, model: ReducedModel) -> onnx.ModelProto:
    """Trace one module into an ONNX model that still carries its weights."""
    batch = torch.export.Dim("B", min=1, max=65536)
    length = torch.export.Dim("S", min=1, max=model.spec.max_positions)
    inputs = _example_inputs(module, model)
    answers = [output.name for output in task_of(model.spec).outputs]
    outputs = answers
    if isinstance(module, SegmentModule):
        at_end = answers if module.answers else []
        outputs = [HIDDEN_OUT, *(at_end if module.segment.is_last else [KEEP_LOGIT])]
    # A bias that wants a gradient would be traced with other strides than it runs with.
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=outputs,
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


def _example_inputs(module: Module, model: ReducedModel) -> dict[str, Tensor]:
    """What a module is traced with: by name, in the order of the graph's inputs."""
    shape = (TRACED_BATCH, min(TRACED_LENGTH, model.spec.max_positions))
    mask = torch.ones(shape, dtype=torch.bool)
    mask[-1, shape[1] // 2 :] = False
    makers: dict[str, Callable[[], Tensor]] = {
        INPUT_IDS: lambda: torch.randint(0, model.spec.vocab_size, shape),
        TOKEN_TYPE_IDS: lambda: torch.zeros(shape, dtype=torch.int64),
        HIDDEN: lambda: torch.randn(*shape, model.spec.hidden_size),
        POSITIONS: lambda: torch.arange(shape[1]).expand(shape).contiguous(),
    }
    inputs = {name: makers[name]() for name in module.inputs}
    return {**inputs, ATTENTION_MASK: mask} if isinstance(module, SegmentModule) else inputs


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


def _describe(
    name: str, proto: onnx.ModelProto, model: ReducedModel, int8: bool
) -> GraphDescription:
    """Names, dtypes and shapes of a graph's inputs and outputs, and its variants.

    Raises:
        ParityError: batch or length is not dynamic.
    """
    graph = proto.graph
    per_row = set[str]()
    if HIDDEN_OUT in [value.name for value in graph.output]:
        per_row = {output.name for output in task_of(model.spec).outputs if output.per != "token"}
    for tensor in (*graph.input, *graph.output):
        shape = _shape(tensor)
        dynamic = shape[:1] if tensor.name in per_row else shape[:2]
        if any(isinstance(size, int) for size in dynamic):
            raise ParityError(
                f"graph {name}: tensor {tensor.name} came out with the fixed shape {list(shape)}; "
                "expected a dynamic batch and length"
            )
    return GraphDescription(
        name,
        tuple(_tensor(value) for value in graph.input),
        tuple(_tensor(value) for value in graph.output),
        (*VARIANTS, INT8, DEQUANTIZED) if int8 else VARIANTS,
    )


def _tensor(value: Any) -> TensorDescription:
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return TensorDescription(value.name, str(dtype), _shape(value))


def _shape(value: Any) -> tuple[str | int, ...]:
    return tuple(
        dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim
    )
