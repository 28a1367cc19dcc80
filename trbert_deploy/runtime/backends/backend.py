"""What runs the graphs: the interface of a backend."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from trbert_deploy.batching import Padding
from trbert_deploy.bounds import MOST_THREADS, require_whole
from trbert_deploy.bundle.manifest import ATTENTION_MASK, GraphDescription
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import BundleError
from trbert_deploy.runtime.arrays import Arrays
from trbert_deploy.runtime.token_state import RowResult, TokenRow

Tensors = Mapping[str, np.ndarray]


class Graph(Protocol):
    """One runnable graph: named arrays in, named arrays out.

    ``hidden_out`` is of the backend's ``arrays``, and so may ``hidden`` be; all else is numpy's.
    Without ``attention_mask`` among the inputs every place of the batch holds a token. A graph
    that ends in the head returns its outputs alone: nobody reads the states behind it.
    """

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the inputs with one entry per token, the mask left out."""
        ...

    def __call__(self, inputs: Tensors) -> Tensors: ...


class Backend(Protocol):
    """Runs the graphs of one bundle."""

    @property
    def description(self) -> Mapping[str, str]:
        """What it runs on (versions, device, threads), for reports."""
        ...

    @property
    def arrays(self) -> Arrays:
        """What its graphs' states are kept in, from cut to cut."""
        ...

    @property
    def padding(self) -> Padding:
        """What padding it is worth that rows share a call."""
        ...

    @property
    def call_tokens(self) -> int:
        """Slots of one call above which a token takes longer; ``MOST_TOKENS`` where none does."""
        ...

    def graph(self, name: str) -> Graph:
        """The graph called ``name`` in the bundle, loaded on its first use."""
        ...


@runtime_checkable
class RowsBackend(Protocol):
    """A backend that runs whole rows itself: states stay on its device from cut to cut."""

    @property
    def description(self) -> Mapping[str, str]:
        """As ``Backend.description``."""
        ...

    def run_rows(
        self, rows: Sequence[TokenRow], reduction: ReductionConfig | None, max_batch_tokens: int
    ) -> list[RowResult]:
        """Run rows, as ``Chain.run`` does.

        Args:
            reduction: the cuts with their rules; None for the dense model.
            max_batch_tokens: tokens that are on their way at a time.
        """
        ...


def require_signature(
    path: Path, graph: GraphDescription, inputs: Collection[str], outputs: Collection[str]
) -> None:
    """Refuse a graph that takes or gives other tensors than the manifest says.

    Args:
        path: its file.
        inputs, outputs: names of its tensors; the mask is taken by one variant alone.

    Raises:
        BundleError: it does.
    """
    if {*inputs} - {ATTENTION_MASK} != {*graph.token_inputs} or not {*graph.answers} <= {*outputs}:
        raise BundleError(
            f"{path} takes {', '.join(inputs)} and gives {', '.join(outputs)}: expected "
            f"{', '.join(graph.token_inputs)}, and {', '.join(graph.answers)}; export the "
            "checkpoint again"
        )


def with_mask(inputs: Tensors) -> Tensors:
    """The inputs of a graph, with a mask that is all True where they had none."""
    shape = next(iter(inputs.values())).shape[:2]
    return {ATTENTION_MASK: np.ones(shape, np.bool_), **inputs}


@dataclass(frozen=True)
class BackendOptions:
    """How a backend runs.

    Attributes:
        threads: threads of one graph; 0 lets the backend choose.
        precision: what it computes in, one that its registry entry offers; None is the backend's
            own choice.

    Raises:
        ConfigError: threads out of range.
    """

    threads: int = 0
    precision: str | None = None

    def __post_init__(self) -> None:
        require_whole("threads", self.threads, 0, MOST_THREADS)


#: Padding that a larger batch is worth where one row does not fill the device.
PADDING_ON_GPUS = Padding(share=0.03)
