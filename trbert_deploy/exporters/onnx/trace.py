"""Segments to ONNX graphs with dynamic batch and length that share one file of weights."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
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
    EXIT_LOGITS,
    HALF,
    HALF_MASKED,
    HALVED,
    HALVES,
    HEAD,
    HIDDEN_OUT,
    INPUT_IDS,
    INT8,
    MATCHES,
    POSITIONS,
    QUANTIZED,
    TOKEN_TYPE_IDS,
    UNMASKED,
    VARIANTS,
    WEIGHTS,
    GraphDescription,
    TensorDescription,
    dropped_name,
    segment_name,
    states_name,
)
from trbert_deploy.errors import ParityError
from trbert_deploy.exporters.onnx.parts import part_of
from trbert_deploy.exporters.onnx.precision import half_graph
from trbert_deploy.exporters.onnx.quantization import dequantized, quantized
from trbert_deploy.exporters.onnx.together import Module, Together, outputs_of, tensor_of
from trbert_deploy.exporters.onnx.variants import fused_variant, write_variants
from trbert_deploy.exporters.onnx.weights import SharedWeights
from trbert_deploy.lexicon.columns import SLOTS, VALUES
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.segments import (
    DroppedModule,
    HeadModule,
    StatesModule,
    dense_module,
    segment_module,
)
from trbert_deploy.tasks.registry import task_of

#: The first opset with an Attention operator; earlier ones export attention as many small ones.
OPSET = 23
TRACED_BATCH = 2
TRACED_LENGTH = 24


def export_graphs(
    model: ReducedModel,
    directory: Path,
    int8: bool = False,
    fp16: bool = False,
    states_after: Sequence[int] = (),
) -> Iterator[GraphDescription]:
    """Write the file of weights, one graph per segment, the dense model, and what dropped tokens
    say where they take part in the answer, or those that are asked for, in all their variants.
    Graphs of states, where some are wanted, come last.

    Args:
        model: in eval mode, float32.
        directory: receives ``weights.safetensors``, ``segment_0.onnx`` ... and ``dense.onnx``.
        int8: write the variants with 8-bit weights, too; of states there are none.
        fp16: write the variants in half precision, too; likewise.
        states_after: layers behind which states are wanted.

    Yields:
        A description of each graph when it is made; all files are there at the end.

    Raises:
        ParityError: the exporter fixed a dimension that must stay dynamic, or wrote attention in
            another way than expected.
        EngineError: a weight does not fit into half precision.
    """
    weights = SharedWeights(model.state_dict())
    protos = {}
    descriptions = {}
    rounded = {}
    halved = {}
    added = ((INT8, DEQUANTIZED) if int8 else ()) + (HALVES if fp16 else ())
    exact = {*map(states_name, states_after)}
    for name, proto in _traced(model, states_after):
        if int8 and name not in exact:
            fused = fused_variant(proto, model.spec.num_heads)
            with tempfile.TemporaryDirectory() as scratch:
                rounded[name] = quantized(fused, f"{scratch}/{name}.onnx")
            weights.take(rounded[name], adopt=QUANTIZED)
        if fp16 and name not in exact:
            halved[name] = half_graph(proto, "fp16")
            weights.take(halved[name], adopt=HALVED)
        weights.take(proto)
        protos[name] = proto
        variants = VARIANTS if name in exact else (*VARIANTS, *added)
        descriptions[name] = _describe(name, proto, model, variants)
        yield descriptions[name]
    weights.save(directory / WEIGHTS)
    for name, proto in protos.items():
        weights.link(proto)
        written = dict(write_variants(proto, model.spec.num_heads))
        if name in rounded:
            weights.link(rounded[name])
            written[INT8] = rounded[name]
            written[DEQUANTIZED] = dequantized(written[UNMASKED], rounded[name])
        if name in halved:
            weights.link(halved[name])
            written[HALF_MASKED] = halved[name]
            written[HALF] = fused_variant(halved[name], model.spec.num_heads)
        for variant, graph in written.items():
            onnx.save(graph, directory / descriptions[name].file_of(variant))


def _traced(
    model: ReducedModel, states_after: Sequence[int]
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """All graphs of a model by name, with their weights inside; those of states are the last."""
    modules: dict[str, Module] = {
        segment_name(segment.index): segment_module(model, segment) for segment in model.segments
    }
    if len(modules) == 1:  # without a cut the only segment is the dense model itself
        modules = {DENSE: dense_module(model)}
    names = list(modules)
    sources = dict(pairwise(reversed(names)))
    if model.hears_dropped:
        for segment in model.segments[:-1]:
            name = dropped_name(segment.index)
            modules[name] = DroppedModule(model, segment.index)
            sources[name] = segment_name(segment.index)
    if model.asked_token is not None:
        modules[HEAD] = HeadModule(model)
        sources[HEAD] = names[-1]
    for layers in states_after:
        modules[states_name(layers)] = StatesModule(model, layers)
    together = Together(model, modules, sources)
    whole = _export(together)
    for name in modules:
        yield name, together.part(whole, name)
        if name == names[-1] != DENSE:
            yield DENSE, _dense(whole, together, name)


def _dense(whole: onnx.ModelProto, together: Together, last: str) -> onnx.ModelProto:
    """The dense model, of the graph that was traced with cuts where it computes the same.

    A later segment is told the positions of its tokens, which need no telling where none is
    missing.

    Args:
        last: name of the last segment.
    """
    if POSITIONS in together.inputs:
        alone = Together(together.model, {DENSE: dense_module(together.model)}, {})
        return alone.part(_export(alone), DENSE)
    written = {tensor_of(last, each): each for each in outputs_of(together.modules_of[last])}
    return part_of(whole, DENSE, {each: each for each in together.inputs}, written)


def _export(together: Together) -> onnx.ModelProto:
    """Trace modules into one ONNX model that still carries its weights."""
    spec = together.model.spec
    batch = torch.export.Dim("B", min=1, max=65536)
    length = torch.export.Dim("S", min=1, max=spec.max_positions)
    # A bias that wants a gradient would be traced with other strides than it runs with.
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            together.eval(),
            kwargs=_example_inputs(together),
            input_names=list(together.inputs),
            output_names=together.outputs,
            opset_version=OPSET,
            dynamic_shapes={name: {0: batch, 1: length} for name in together.inputs},
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


def _example_inputs(together: Together) -> dict[str, Tensor]:
    """What modules are traced with: by name, in the order of the graph's inputs."""
    spec = together.model.spec
    shape = (TRACED_BATCH, min(TRACED_LENGTH, spec.max_positions))
    mask = torch.ones(shape, dtype=torch.bool)
    mask[-1, shape[1] // 2 :] = False
    columns = {
        INPUT_IDS: torch.randint(0, spec.vocab_size, shape),
        TOKEN_TYPE_IDS: torch.zeros(shape, dtype=torch.int64),
        POSITIONS: torch.arange(shape[1]).expand(shape).contiguous(),
        MATCHES: torch.zeros((*shape, SLOTS, VALUES), dtype=torch.int64),
        ATTENTION_MASK: mask,
    }
    return {name: columns[name] for name in together.inputs}


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
    name: str, proto: onnx.ModelProto, model: ReducedModel, variants: tuple[str, ...]
) -> GraphDescription:
    """Names, dtypes and shapes of a graph's inputs and outputs, beside its variants.

    Raises:
        ParityError: batch or length is not dynamic.
    """
    graph = proto.graph
    per_row = set[str]()
    if HIDDEN_OUT in [value.name for value in graph.output]:
        per_row = {output.name for output in task_of(model.spec).outputs if output.per != "token"}
        per_row |= {EXIT_LOGITS} if per_row else set()
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
        tuple(tensor_description(value) for value in graph.input),
        tuple(tensor_description(value) for value in graph.output),
        variants,
    )


def tensor_description(value: onnx.ValueInfoProto) -> TensorDescription:
    """An input or output of a graph as the manifest has it."""
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return TensorDescription(value.name, str(dtype), _shape(value))


def _shape(value: Any) -> tuple[str | int, ...]:
    return tuple(
        dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim
    )
