"""How large activations become, found by running a bundle's chain on its sample texts.

The chain runs as a service runs it: a segment behind a cut sees what survives the cuts before it,
and the dense model all tokens. Rows are never padded here, so no padding is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trbert_deploy.batching import NO_PADDING
from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import ATTENTION_MASK
from trbert_deploy.bundle.samples import Sample
from trbert_deploy.errors import ConfigError
from trbert_deploy.exporters.onnx.static_quantization import product_inputs, static_graph
from trbert_deploy.runtime.arrays import HOST, Arrays
from trbert_deploy.runtime.backends.backend import Graph, Tensors, with_mask
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.samples import RowMaker, are_random, row_maker
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.runtime.tokenizing import tokenizer_of
from trbert_deploy.tasks.registry import task_of

#: Activation -> its largest absolute value by channel, [H].
Largest = dict[str, NDArray[np.float32]]

#: Tokens of the rows that ranges are found on, and how many rows of each: some 6,000 tokens.
_LENGTHS = (16, 64, 128, 512, 2048)
_TOKENS_PER_LENGTH = 2048
_MOST_ROWS = 8

_LARGEST = ".largest"


def eight_bit_models(
    bundle: Bundle,
    models: Mapping[str, onnx.ModelProto],
    precision: str,
) -> dict[str, onnx.ModelProto]:
    """The graphs of a bundle with products of 8 bits (``static_graph``).

    Args:
        models: all of them, with their weights loaded; not changed.
        precision: ``int8`` or ``fp8``.

    Raises:
        ConfigError: the bundle has no sample texts, on which ranges are found.
    """
    if are_random(bundle):
        raise ConfigError(
            f"{bundle.path} has no sample texts, on which {precision} finds how large activations "
            "become: training keeps some with a checkpoint, which export --no-samples leaves out; "
            "build with --fp16"
        )
    largest = activation_sizes(bundle, models, calibration_rows(bundle, bundle.samples()))
    return {name: static_graph(model, precision, largest[name]) for name, model in models.items()}


def calibration_rows(bundle: Bundle, texts: Sequence[Sample]) -> list[TokenRow]:
    """Rows of every other one of a model's sample texts, from short ones to its longest."""
    rows_of = _row_maker(bundle, texts[::2])
    lengths = sorted({min(length, bundle.manifest.max_length) for length in _LENGTHS})
    return [
        row
        for length in lengths
        for row in rows_of(length, min(_MOST_ROWS, max(1, _TOKENS_PER_LENGTH // length)))
    ]


def judging_rows(bundle: Bundle, texts: Sequence[Sample]) -> RowMaker:
    """Makes rows of the sample texts that ``calibration_rows`` leaves out; of all if it is one."""
    return _row_maker(bundle, texts[1::2] or texts)


def _row_maker(bundle: Bundle, texts: Sequence[Sample]) -> RowMaker:
    return row_maker(tokenizer_of(bundle), bundle.manifest.encoder, texts)


def activation_sizes(
    bundle: Bundle, models: Mapping[str, onnx.ModelProto], rows: Sequence[TokenRow]
) -> dict[str, Largest]:
    """How large the inputs of the products are, in every graph of a bundle, on these rows.

    Args:
        models: the bundle's graphs, with their weights loaded.

    Returns:
        Graph -> activation -> the largest absolute value of each channel, [H] float32.
    """
    manifest = bundle.manifest
    backend = ObservingBackend(bundle, models)
    chain = Chain(
        backend,
        manifest.reduction,
        manifest.encoder.num_layers,
        task=task_of(manifest.encoder),
    ).to_the_end()  # where all rows left at an exit, the segments behind it would see none
    chain.run(rows)
    if manifest.reduction.cuts:
        chain.run_dense(rows)
    return backend.largest


class ObservingBackend:
    """Runs a bundle's float32 graphs in ONNX Runtime, and notes how large activations become.

    Args:
        models: the bundle's graphs by name, with their weights loaded.

    Attributes:
        largest: graph -> what was noted; nothing of a graph that never ran.
    """

    def __init__(self, bundle: Bundle, models: Mapping[str, onnx.ModelProto]) -> None:
        self._bundle = bundle
        self._models = models
        self.largest: dict[str, Largest] = {name: {} for name in models}
        self.graph = cache(self._open)
        self.padding = NO_PADDING
        self.call_tokens = MOST_TOKENS
        self.arrays: Arrays = HOST
        self.description: Mapping[str, str] = {"backend": "onnxruntime", "precision": "fp32"}

    def _open(self, name: str) -> Graph:
        description = self._bundle.manifest.graph(name)
        return _ObservedGraph(
            self._models[name], description.token_inputs, description.answers, self.largest[name]
        )


class _ObservedGraph:
    """A graph whose activations are noted in ``largest``.

    Args:
        inputs, answers: as the manifest has them.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        inputs: Sequence[str],
        answers: Sequence[str],
        largest: Largest,
    ) -> None:
        self.inputs = inputs
        self._answers = answers
        self._largest = largest
        self._observed = product_inputs(model.graph)
        self._takes_mask = any(value.name == ATTENTION_MASK for value in model.graph.input)
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            _measuring(model, self._observed).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )

    def __call__(self, inputs: Tensors) -> Tensors:
        given = with_mask(inputs) if self._takes_mask else dict(inputs)
        wanted = [*self._answers, *(f"{name}{_LARGEST}" for name in self._observed)]
        values = self._session.run(wanted, given)
        count = len(self._answers)
        for name, found in zip(self._observed, values[count:], strict=True):
            self._largest[name] = np.maximum(self._largest.get(name, found), found)
        return dict(zip(self._answers, values[:count], strict=True))


def _measuring(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model that also tells the largest absolute value of each channel of tensors."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    for name in names:
        rows, sizes, axis, largest = (
            f"{name}{part}" for part in (".rows", ".sizes", ".axis", _LARGEST)
        )
        graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), axis))
        graph.node.extend(
            [
                helper.make_node("Flatten", [name], [rows], axis=-1),  # [B, S, H] to [B * S, H]
                helper.make_node("Abs", [rows], [sizes]),
                helper.make_node("ReduceMax", [sizes, axis], [largest], keepdims=0),
            ]
        )
        graph.output.append(helper.make_tensor_value_info(largest, TensorProto.FLOAT, None))
    return made
