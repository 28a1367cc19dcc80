"""Runs a bundle's TensorRT engines; states stay on the GPU from cut to cut."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import CHAIN, HIDDEN_OUT, GraphDescription
from trbert_deploy.errors import LengthError
from trbert_deploy.runtime.arrays import Arrays
from trbert_deploy.runtime.backends.backend import (
    PADDING_ON_GPUS,
    BackendOptions,
    Graph,
    Tensors,
    with_mask,
)
from trbert_deploy.runtime.backends.tensorrt.engine_set import EngineSet, Profile, find_engine_set
from trbert_deploy.runtime.backends.tensorrt.executor import Executor
from trbert_deploy.runtime.backends.tensorrt.library import (
    gpu_compute_capability,
    load_tensorrt,
    register_plugin,
)
from trbert_deploy.runtime.backends.tensorrt.memory import EngineMemory
from trbert_deploy.runtime.device_arrays import DeviceArrays, DeviceStates


class TensorRTBackend:
    """The engines that fit this GPU; not for use from several threads at once.

    All contexts share one stream and one scratch buffer: graphs of a chain run one after the
    other, so that the GPU holds the largest scratch and not the sum. Nothing here refers to itself:
    the GPU's memory is free as soon as the backend is let go, not when cycles are looked for.

    Raises:
        MissingDependencyError: TensorRT or CUDA's bindings are not installed.
        DeviceError: no NVIDIA GPU answers.
        EngineError: no engines, or none that may run here.
    """

    def __init__(self, bundle: Bundle, precision: str | None = None) -> None:
        self._library = load_tensorrt()
        capability = gpu_compute_capability()
        self._engine_set = find_engine_set(
            bundle, self._library.flavour, self._library.version, capability, precision
        )
        self._bundle = bundle
        self._executor = Executor(self._library)
        self._memory = EngineMemory(self._executor)
        self._graphs: dict[str, EngineGraph] = {}
        self.padding = PADDING_ON_GPUS
        self.call_tokens = MOST_TOKENS
        self.arrays: Arrays = DeviceArrays(self._memory)
        key = self._engine_set.manifest.key
        self.description: Mapping[str, str] = {
            "backend": "tensorrt",
            "version": f"{key.version} ({key.flavour})",
            "precision": key.precision,
            "compute capability": capability,
        }

    def graph(self, name: str) -> Graph:
        if name not in self._graphs:
            self._graphs[name] = self._open(name)
        return self._graphs[name]

    def _open(self, name: str) -> EngineGraph:
        data = self._engine_set.read(name)
        if name == CHAIN and self._engine_set.manifest.key.plugin:
            register_plugin(self._library)
        engine = self._executor.load(data, f"the engine {name}")
        graph = self._bundle.manifest.graph(name)
        return EngineGraph(engine, graph, self._engine_set, self._executor, self._memory)


class EngineGraph:
    """One engine; a context per profile, made when a batch first needs it."""

    def __init__(
        self,
        engine: Any,
        graph: GraphDescription,
        engine_set: EngineSet,
        executor: Executor,
        memory: EngineMemory,
    ) -> None:
        self._engine = engine
        self._graph = graph
        self._engine_set = engine_set
        self._executor = executor
        self._device = executor.device
        self._memory = memory
        self._contexts: dict[int, Any] = {}
        self.inputs = graph.token_inputs
        # Behind the head nobody reads the states: copying them would cost more than the head.
        self._returned = graph.answers

    def __call__(self, inputs: Tensors) -> Tensors:
        """Run a batch; one with more rows than the profile takes runs in parts.

        Returns:
            The graph's outputs; of the last segment the logits alone.

        Raises:
            LengthError: no profile takes rows of this length, or so few of them.
        """
        batch, length = inputs[self._graph.inputs[0].name].shape[:2]
        if self._graph.takes_mask:
            inputs = with_mask(inputs)
        index = self._engine_set.profile_for(self._graph.name, length)
        profile = self._engine_set.manifest.key.profiles[self._graph.name][index]
        parts = [
            self._run(index, {name: self._part(each, *rows) for name, each in inputs.items()})
            for rows in row_ranges(batch, profile, length)
        ]
        return {name: self._joined([part[name] for part in parts]) for name in self._returned}

    def _part(self, array: Any, start: int, stop: int) -> Any:
        """Some rows of an input."""
        if isinstance(array, DeviceStates):
            return self._memory.part(array, start, stop)
        return array[start:stop]

    def _joined(self, parts: list[Any]) -> Any:
        """The rows of an output's parts."""
        if isinstance(parts[0], DeviceStates):
            return self._memory.joined(parts)
        return np.concatenate(parts)

    def _run(self, profile: int, inputs: Tensors) -> dict[str, Any]:
        context, device = self._context(profile), self._device
        names = [tensor.name for tensor in self._graph.inputs]
        self._executor.set_shapes(context, [(name, inputs[name].shape) for name in names])
        for tensor in self._graph.inputs:
            given = inputs[tensor.name]
            if isinstance(given, DeviceStates):
                address = given.address
            else:
                array = np.ascontiguousarray(given, np.dtype(tensor.dtype))
                address = device.upload(tensor.name, array)
            context.set_tensor_address(tensor.name, address)
        outputs: dict[str, Any] = {}
        for tensor in self._graph.outputs:
            shape = self._executor.shape_of(context, tensor.name)
            if tensor.name == HIDDEN_OUT and HIDDEN_OUT in self._returned:
                outputs[tensor.name] = self._memory.empty(shape)
                address = outputs[tensor.name].address
            else:
                array = np.empty(shape, np.dtype(tensor.dtype))
                outputs[tensor.name] = array
                address = device.reserve(tensor.name, array.nbytes)
            context.set_tensor_address(tensor.name, address)
        self._executor.launch(context)
        copied = [name for name in self._returned if name != HIDDEN_OUT]
        for name in copied:
            device.download(name, outputs[name])
        if copied:
            device.synchronize()
        return outputs

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            self._contexts[profile] = self._executor.context(self._engine, profile)
        return self._contexts[profile]


def row_ranges(batch: int, profile: Profile, length: int) -> list[tuple[int, int]]:
    """``batch`` rows in nearly equal parts of at most ``profile.max_batch``: (start, stop) each.

    Raises:
        LengthError: a part has fewer rows than the profile takes.
    """
    parts = -(-batch // profile.max_batch)
    bounds = [batch * part // parts for part in range(parts + 1)]
    if bounds[1] < profile.min_batch:
        raise LengthError(
            f"no engine profile takes {bounds[1]} rows of {length} tokens: it takes {profile} "
            "(rows x tokens); build with a smaller first --batch"
        )
    return list(pairwise(bounds))


def open_backend(bundle: Bundle, options: BackendOptions) -> TensorRTBackend:
    """Open ``bundle`` with TensorRT, on engines of the wanted precision (threads mean nothing)."""
    return TensorRTBackend(bundle, options.precision)
