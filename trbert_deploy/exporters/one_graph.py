"""The graph of a bundle's whole chain: made of its segments' graphs, and checked against them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    ATTENTION_MASK,
    CHAIN,
    CHAIN_VARIANTS,
    DENSE,
    FUSED,
    HALF,
    HALVES,
    MASKED,
    SCHEDULED,
    GraphDescription,
    Manifest,
)
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.exporters.checks.limits import LIMITS
from trbert_deploy.exporters.checks.parity import ResultParity, compare_results
from trbert_deploy.exporters.onnx.trace import tensor_description
from trbert_deploy.exporters.onnx.whole_chain import require_one_graph, whole_chain
from trbert_deploy.runtime.backends.backend import with_mask
from trbert_deploy.runtime.backends.one_graph import results_of_chain
from trbert_deploy.runtime.batch_inputs import batch_inputs
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.token_state import RowResult, TokenRow, TokenState
from trbert_deploy.runtime.tokenizing import TruncationWarning, tokenizer_of
from trbert_deploy.selection.capacity import Capacity
from trbert_deploy.tasks.examples import Text
from trbert_deploy.tasks.outputs import Output
from trbert_deploy.tasks.registry import task_of

#: Rows of a batch that padded graphs are checked with, of different lengths.
_BATCH = 3
#: Sample texts whose survivors are counted.
_MOST_TEXTS = 32


@dataclass(frozen=True)
class OneGraph:
    """What came of it.

    Attributes:
        graph: what the manifest says of it.
        capacities: slots behind each cut in the variant whose slots follow from the length.
        parity: how far each variant is from the chain.
    """

    graph: GraphDescription
    capacities: tuple[Capacity, ...]
    parity: Mapping[str, ResultParity]

    def to_json(self) -> dict[str, Any]:
        return {variant: parity.to_json() for variant, parity in self.parity.items()}


def require_possible(
    reduction: ReductionConfig,
    outputs: Sequence[Output],
    has_samples: bool,
    takes_matches: bool = False,
) -> None:
    """Refuse a model whose chain cannot be one graph.

    Raises:
        ConfigError: it cannot, as ``require_one_graph`` says, or there are no sample texts.
    """
    require_one_graph(reduction, outputs, takes_matches)
    if not has_samples:
        raise ConfigError(
            "the checkpoint has no sample texts, from which --fused learns how many tokens "
            "survive: train it again, or export it without --fused"
        )


def whole_rows(bundle: Bundle, texts: Sequence[Text]) -> list[TokenRow]:
    """Rows of some of a model's sample texts, of the length that each has."""
    tokenizer, task = tokenizer_of(bundle), task_of(bundle.manifest.encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # which nobody reads the answers of
        encodings = tokenizer.encode([task.input_of(text) for text in texts[:_MOST_TEXTS]])
    return [part for row in tokenizer.rows(encodings, task.protected) for part in row.parts]


def add_one_graph(bundle: Bundle, chain: Chain, rows: Sequence[TokenRow]) -> OneGraph:
    """Write the graph of the whole chain beside those of its segments, and check it.

    Args:
        bundle: whose directory it is written to; its manifest may lack the graph.
        chain: what it is compared with, at the bundle's own operating point.
        rows: of real text, of many lengths, by which slots are reckoned and variants compared.

    Raises:
        ParityError: a variant is too far from the chain.
    """
    manifest = bundle.manifest
    task = task_of(manifest.encoder)
    expected = chain.run(rows)
    capacities = tuple(
        Capacity.of(
            (len(row), len(result.kept[cut])) for row, result in zip(rows, expected, strict=True)
        )
        for cut in range(len(manifest.reduction.cuts))
    )
    halves = HALVES if bundle.has_variant(HALF) else ()
    graph = GraphDescription(CHAIN, (), (), (*CHAIN_VARIANTS, *halves))
    parity = {}
    for variant in graph.variants:
        model = chain_model(bundle, variant, capacities)
        path = bundle.path / graph.file_of(variant)
        onnx.save(model, path)
        if variant == MASKED:
            graph = replace(
                graph,
                inputs=tuple(map(tensor_description, model.graph.input)),
                outputs=tuple(map(tensor_description, model.graph.output)),
            )
        received = _run(path, graph, manifest, rows, 1 if variant in (FUSED, HALF) else _BATCH)
        parity[variant] = compare_results(
            task,
            rows,
            expected,
            received,
            LIMITS["fp16" if variant in halves else "fp32"],
            name=f"chain in one graph ({variant})",
            reference_name="the chain",
        )
    return OneGraph(graph, capacities, parity)


def chain_model(bundle: Bundle, variant: str, capacities: Sequence[Capacity]) -> onnx.ModelProto:
    """One variant of the graph, whose weights are the bundle's."""
    of_segments = MASKED if variant == SCHEDULED else variant
    parts = {
        part.name: onnx.load(bundle.graph_path(part.name, of_segments), load_external_data=False)
        for part in bundle.manifest.graphs
        if part.name != DENSE
    }
    return chain_of_parts(bundle.manifest, parts, capacities if variant == SCHEDULED else None)


def chain_of_parts(
    manifest: Manifest,
    parts: Mapping[str, onnx.ModelProto],
    capacities: Sequence[Capacity] | None,
    *,
    plugin: bool = False,
) -> onnx.ModelProto:
    """The whole chain of a bundle's graphs but the dense one, in whatever precision they are.

    Args:
        capacities, plugin: as ``whole_chain`` takes them.
    """
    task = task_of(manifest.encoder)
    return whole_chain(
        parts,
        manifest.reduction,
        task.outputs,
        protects=task.protects,
        capacities=capacities,
        plugin=plugin,
    )


def _run(
    path: Path,
    graph: GraphDescription,
    manifest: Manifest,
    rows: Sequence[TokenRow],
    batch: int,
) -> list[RowResult]:
    """What a variant says of rows, so many at a time, of which the shorter ones are padded."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_outputs()]
    takes_mask = ATTENTION_MASK in [tensor.name for tensor in session.get_inputs()]
    results = []
    for start in range(0, len(rows), batch):
        together = rows[start : start + batch]
        inputs = batch_inputs(graph.token_inputs, [TokenState.of(0, row) for row in together])
        values = session.run(names, with_mask(inputs) if takes_mask else inputs)
        results += results_of_chain(
            task_of(manifest.encoder).outputs,
            dict(zip(names, values, strict=True)),
            [len(row) for row in together],
            len(manifest.reduction.cuts),
        )
    return results
