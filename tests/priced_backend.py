"""A backend at known prices, so that what is measured has a right value."""

from __future__ import annotations

from trbert_deploy.runtime.backends.backend import Backend, Graph, Tensors

#: Layers of each graph of the tiny model.
LAYERS = {"segment_0": 1, "segment_1": 1, "segment_2": 2, "dense": 4}


class PricedBackend:
    """Its graphs answer as those of ``backend``, and move a clock on.

    Args:
        call: seconds for the call of a graph.
        token: seconds for a token in a layer.
    """

    def __init__(self, backend: Backend, call: float, token: float) -> None:
        self._backend, self._call, self._token = backend, call, token
        self._now = 0.0
        self.description = backend.description
        self.padding, self.call_tokens = backend.padding, backend.call_tokens
        self.arrays = backend.arrays

    def clock(self) -> float:
        return self._now

    def graph(self, name: str) -> Graph:
        return _Ticking(self, name, self._backend.graph(name))

    def charge(self, name: str, tokens: int) -> None:
        self._now += self._call + self._token * LAYERS[name] * tokens


class _Ticking:
    def __init__(self, backend: PricedBackend, name: str, graph: Graph) -> None:
        self._backend, self._name, self._graph = backend, name, graph
        self.inputs = graph.inputs

    def __call__(self, inputs: Tensors) -> Tensors:
        rows, length = next(iter(inputs.values())).shape[:2]
        self._backend.charge(self._name, rows * length)
        return self._graph(inputs)
