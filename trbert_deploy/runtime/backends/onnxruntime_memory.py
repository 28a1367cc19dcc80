"""Hidden states in the memory of ONNX Runtime's device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from trbert_deploy.bundle.manifest import HIDDEN_OUT
from trbert_deploy.errors import DeviceError, first_line
from trbert_deploy.runtime.backends.backend import Tensors
from trbert_deploy.runtime.device_arrays import MEAN_GRAPH, TAKE_GRAPH, DeviceStates, device_graph


class OnnxRuntimeMemory:
    """As ``DeviceMemory``.

    Args:
        device: ``cuda``, or ``cpu``.
        open_session: a graph -> what runs it there.
    """

    def __init__(
        self, device: str, open_session: Callable[[bytes], onnxruntime.InferenceSession]
    ) -> None:
        self.device = device
        self._open_session = open_session

    @cached_property
    def _take(self) -> onnxruntime.InferenceSession:
        return self._open_session(device_graph(TAKE_GRAPH))

    @cached_property
    def _mean(self) -> onnxruntime.InferenceSession:
        return self._open_session(device_graph(MEAN_GRAPH))

    def run(
        self, session: onnxruntime.InferenceSession, inputs: Tensors, wanted: Sequence[str]
    ) -> Tensors:
        """Run a graph: states are taken from the device and left there, all else is copied."""
        bound = session.io_binding()
        for name, array in inputs.items():
            if isinstance(array, DeviceStates):
                bound.bind_ortvalue_input(name, array.memory)
            else:
                bound.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in wanted:
            bound.bind_output(name, self.device if name == HIDDEN_OUT else "cpu")
        session.run_with_iobinding(bound)
        values = dict(zip(wanted, bound.get_outputs(), strict=True))
        return {
            name: cast(np.ndarray, self.states(value)) if name == HIDDEN_OUT else value.numpy()
            for name, value in values.items()
        }

    def empty(self, shape: tuple[int, int, int]) -> DeviceStates:
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        with _failing_in_one_line(self.device):
            return self.states(make(shape, np.float32, self.device))

    def states(self, value: onnxruntime.OrtValue) -> DeviceStates:
        """A value on the device as states [B, S, H]."""
        batch, length, width = value.shape()
        return DeviceStates(value, value.data_ptr(), (batch, length, width))

    def to_host(self, states: DeviceStates) -> NDArray[np.float32]:
        found: NDArray[np.float32] = states.memory.numpy()
        return found

    def take(
        self, source: DeviceStates, places: NDArray[np.int64], target: DeviceStates, row: int
    ) -> None:
        self._write(self._take, source, {"places": places}, target, row)

    def mean(
        self,
        source: DeviceStates,
        places: NDArray[np.int64],
        weights: NDArray[np.float32],
        target: DeviceStates,
        row: int,
    ) -> None:
        self._write(self._mean, source, {"places": places, "weights": weights}, target, row)

    def _write(
        self,
        session: onnxruntime.InferenceSession,
        source: DeviceStates,
        inputs: Mapping[str, np.ndarray],
        target: DeviceStates,
        row: int,
    ) -> None:
        bound = session.io_binding()
        batch, length, width = source.shape
        flat = (batch * length, width)
        bound.bind_input("states", self.device, 0, np.float32, flat, source.address)
        for name, array in inputs.items():
            bound.bind_cpu_input(name, np.ascontiguousarray(array))
        shape = (len(inputs["places"]), *target.shape[1:])
        address = target.address_of(row)
        bound.bind_output("taken", self.device, 0, np.float32, shape, address)
        with _failing_in_one_line(self.device):
            session.run_with_iobinding(bound)


@contextmanager
def _failing_in_one_line(device: str) -> Iterator[None]:
    """Says of ONNX Runtime's failures, which have classes of their own, what they are of."""
    try:
        yield
    except Exception as problem:
        raise DeviceError(
            f"ONNX Runtime cannot bring states together on {device}: {first_line(problem)}; run "
            "smaller batches (--max-batch-tokens)"
        ) from problem
