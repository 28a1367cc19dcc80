"""Runs the graph of a bundle's whole chain; here with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trbert_deploy.batching import group_by_length
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import CHAIN, DENSE, survivors_name
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.runtime.backends.backend import Backend, BackendOptions, Tensors, with_mask
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.batch_inputs import batch_inputs
from trbert_deploy.runtime.token_state import RowResult, TokenRow, TokenState
from trbert_deploy.tasks.outputs import Output, rows_of_outputs
from trbert_deploy.tasks.registry import task_of


class OneGraphBackend:
    """The whole chain in one call, as programs run it that have none of this package.

    It chooses tokens by the rules that the bundle was exported with, and by no others.

    Args:
        graphs: runs the bundle's graphs, that of the whole chain among them.
        name: of the backend.
        batches: whether several rows share a call, of which the shorter ones are padded.
    """

    def __init__(self, bundle: Bundle, graphs: Backend, name: str, *, batches: bool) -> None:
        self._reduction = bundle.manifest.reduction
        self._outputs = task_of(bundle.manifest.encoder).outputs
        self._graphs = graphs
        self._batches = batches
        self.description: Mapping[str, str] = {**graphs.description, "backend": name}

    def run_rows(
        self, rows: Sequence[TokenRow], reduction: ReductionConfig | None, max_batch_tokens: int
    ) -> list[RowResult]:
        """As ``RowsBackend.run_rows``.

        Raises:
            ConfigError: another operating point than the bundle's.
        """
        if reduction not in (None, self._reduction):
            raise ConfigError(
                "the graph of the whole chain has the operating point of its export, and no "
                "other: choose another backend"
            )
        graph = self._graphs.graph(DENSE if reduction is None else CHAIN)
        cuts = 0 if reduction is None else len(reduction.cuts)
        results: dict[int, RowResult] = {}
        for group in self._groups(list(map(len, rows)), max_batch_tokens):
            states = [TokenState.of(index, rows[index]) for index in group]
            inputs: Tensors = batch_inputs(graph.inputs, states)
            if len(states) > 1:  # rows of one length may keep different numbers of tokens
                inputs = with_mask(inputs)
            values = graph(inputs)
            found = results_of_chain(self._outputs, values, list(map(len, states)), cuts)
            results.update(zip(group, found, strict=True))
        return [results[index] for index in range(len(rows))]

    def _groups(self, lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
        """Places of the rows that share a call."""
        if not self._batches:
            return [[place] for place in range(len(lengths))]
        most = min(max_batch_tokens, self._graphs.call_tokens)
        groups = group_by_length(lengths, most, self._graphs.padding)
        return [group.tolist() for group in groups]


def results_of_chain(
    outputs: Sequence[Output], values: Tensors, lengths: Sequence[int], cuts: int
) -> list[RowResult]:
    """What the graph of a whole chain says, row by row.

    Args:
        outputs: of the task.
        values: of a batch, by name.
        lengths: tokens of each row.
        cuts: how many the chain has.
    """
    survivors = [values[survivors_name(cut)] for cut in range(cuts)]
    answers = {output.name: values[output.name] for output in outputs}
    return [
        RowResult(answer, tuple(places[row][places[row] >= 0] for places in survivors))
        for row, answer in enumerate(rows_of_outputs(outputs, answers, lengths))
    ]


def open_backend(bundle: Bundle, options: BackendOptions) -> OneGraphBackend:
    """Open ``bundle`` with ONNX Runtime, its whole chain in one graph.

    On CPUs rows go alone, since a mask and padding take longer; on GPUs together.

    Raises:
        ConfigError: the bundle has none.
    """
    bundle.require_chain()
    graphs = OnnxRuntimeBackend(bundle, options)
    return OneGraphBackend(bundle, graphs, "one-graph", batches=graphs.padding.share > 0)
