"""Hidden states in the memory of TensorRT's GPU.

What brings them together are two small engines, built when they are first needed: in a tenth and in
half a second by TensorRT for RTX. Addresses that TensorRT is given are beginnings of blocks, which
lie as it wants them; rows inside a block need not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.errors import EngineError
from trbert_deploy.runtime.backends.tensorrt.executor import Executor
from trbert_deploy.runtime.backends.tensorrt.library import TensorRT, failure, library_log
from trbert_deploy.runtime.device_arrays import MEAN_GRAPH, TAKE_GRAPH, DeviceStates, device_graph

#: Most states of a batch, and of a row.
_MOST_STATES = 2**20
_BYTES = np.dtype(np.float32).itemsize

#: Smallest, usual and largest [B, K] of the places in states, by engine and profile.
_Shapes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
_TAKE: tuple[_Shapes, ...] = (((1, 1), (1, 4096), (1, _MOST_STATES)),)
_MEAN: tuple[_Shapes, ...] = (
    ((1, 1), (32, 256), (256, 4096)),
    ((1, 1), (1, 4096), (1, _MOST_STATES)),
)


class EngineMemory:
    """As ``DeviceMemory``.

    Args:
        executor: runs the engines.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._device = executor.device
        self._engines: dict[tuple[str, int], Any] = {}
        self._contexts: dict[tuple[str, int, int], Any] = {}

    def empty(self, shape: tuple[int, ...]) -> DeviceStates:
        batch, length, width = shape
        block = self._device.allocate("states", batch * length * width * _BYTES)
        return DeviceStates(block, block.address, (batch, length, width))

    def to_host(self, states: DeviceStates) -> NDArray[np.float32]:
        array = np.empty(states.shape, np.float32)
        self._device.read(states.address, array)
        self._device.synchronize()
        return array

    def part(self, states: DeviceStates, start: int, stop: int) -> DeviceStates:
        """Some rows of a batch."""
        batch, length, width = states.shape
        if (start, stop) == (0, batch):
            return states
        part = self.empty((stop - start, length, width))
        self._device.move(part.address, states.address_of(start), _size(part))
        return part

    def joined(self, parts: Sequence[DeviceStates]) -> DeviceStates:
        """The rows of several batches, of one length, as one."""
        if len(parts) == 1:
            return parts[0]
        whole = self.empty((sum(part.shape[0] for part in parts), *parts[0].shape[1:]))
        row = 0
        for part in parts:
            self._device.move(whole.address_of(row), part.address, _size(part))
            row += part.shape[0]
        return whole

    def take(
        self, source: DeviceStates, places: NDArray[np.int64], target: DeviceStates, row: int
    ) -> None:
        rows = (len(places), *target.shape[1:])
        self._write(TAKE_GRAPH, 0, source, {"places": places.reshape(1, -1)}, rows, target, row)

    def mean(
        self,
        source: DeviceStates,
        places: NDArray[np.int64],
        weights: NDArray[np.float32],
        target: DeviceStates,
        row: int,
    ) -> None:
        _, _, (most_rows, most_places) = _MEAN[0]
        is_long = places.shape[1] > most_places
        step = 1 if is_long else most_rows
        for start in range(0, len(places), step):
            some = slice(start, start + step)
            inputs: dict[str, np.ndarray] = {"places": places[some], "weights": weights[some]}
            rows = (len(places[some]), *target.shape[1:])
            self._write(MEAN_GRAPH, int(is_long), source, inputs, rows, target, row + start)

    def _write(
        self,
        graph: str,
        profile: int,
        source: DeviceStates,
        inputs: Mapping[str, np.ndarray],
        shape: tuple[int, int, int],
        target: DeviceStates,
        row: int,
    ) -> None:
        """Run an engine for rows [B, K, H] = ``shape`` of ``target``, from ``row`` on."""
        batch, length, width = source.shape
        context = self._context(graph, profile, width)
        flat = ("states", (batch * length, width))
        self._executor.set_shapes(context, [flat, *((n, a.shape) for n, a in inputs.items())])
        context.set_tensor_address("states", source.address)
        for name, array in inputs.items():
            address = self._device.upload(name, np.ascontiguousarray(array))
            context.set_tensor_address(name, address)
        written = target if shape == target.shape else self.empty(shape)
        context.set_tensor_address("taken", written.address)
        self._executor.launch(context)
        if written is not target:
            self._device.move(target.address_of(row), written.address, _size(written))

    def _context(self, graph: str, profile: int, width: int) -> Any:
        key = graph, profile, width
        if key not in self._contexts:
            self._contexts[key] = self._executor.context(self._engine(graph, width), profile)
        return self._contexts[key]

    def _engine(self, graph: str, width: int) -> Any:
        if (graph, width) not in self._engines:
            data = build_states_engine(self._executor.library, graph, width)
            self._engines[graph, width] = self._executor.load(data, graph)
        return self._engines[graph, width]


def _size(states: DeviceStates) -> int:
    return int(np.prod(states.shape)) * _BYTES


def build_states_engine(
    library: TensorRT, graph: str, width: int, compute_capability: Any = None
) -> bytes:
    """An engine of one of the graphs in ``device_arrays``, for states of ``width`` values.

    Args:
        compute_capability: a member of TensorRT for RTX's; None for the GPU that is here.

    Raises:
        EngineError: TensorRT builds none.
    """
    trt, log = library.module, library_log(library)
    log.lines.clear()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    trt.OnnxParser(network, log).parse(device_graph(graph))
    config = builder.create_builder_config()
    if compute_capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(compute_capability, 0)
    for shapes in _MEAN if graph == MEAN_GRAPH else _TAKE:
        profile = builder.create_optimization_profile()
        profile.set_shape("states", (1, width), (4096, width), (_MOST_STATES, width))
        profile.set_shape("places", *shapes)
        if graph == MEAN_GRAPH:
            profile.set_shape("weights", *((batch, 1, count) for batch, count in shapes))
        config.add_optimization_profile(profile)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(failure(library, f"cannot build {graph}", log.errors()))
    return bytes(serialized)
