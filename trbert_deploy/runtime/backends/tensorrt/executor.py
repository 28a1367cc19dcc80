"""What runs engines: TensorRT, and a stream of a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trbert_deploy.errors import EngineError
from trbert_deploy.runtime.backends.tensorrt.device import Device
from trbert_deploy.runtime.backends.tensorrt.kernel_cache import KernelCache
from trbert_deploy.runtime.backends.tensorrt.library import TensorRT, failure, library_log


class Executor:
    """Loads engines, and runs them one after the other on its device's stream.

    Attributes:
        library: TensorRT.
        device: where they run.

    Raises:
        DeviceError, MissingDependencyError: as ``Device``.
    """

    def __init__(self, library: TensorRT) -> None:
        self.library = library
        self.device = Device()
        self._runtime = library.module.Runtime(library_log(library))
        self._kernels = KernelCache(library) if library.is_rtx else None

    def load(self, data: bytes, name: str) -> Any:
        """An engine, of what the builder made.

        Args:
            name: what an error calls it.

        Raises:
            EngineError: TensorRT cannot load it.
        """
        self._forget()
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self._failed(f"cannot load {name}")
        return engine

    def context(self, engine: Any, profile: int) -> Any:
        """A context of an engine for one of its profiles, whose scratch memory ``launch`` gives.

        Raises:
            EngineError: TensorRT makes none.
        """
        self._forget()
        strategy = self.library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        how = strategy if self._kernels is None else self._kernels.config_for(engine, strategy)
        context = engine.create_execution_context(how)
        if context is None:
            raise self._failed("cannot make a context")
        context.set_optimization_profile_async(profile, self.device.stream)
        self.device.synchronize()
        return context

    def set_shapes(self, context: Any, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Tell a context how large its inputs are.

        Args:
            shapes: of each input, by its name.

        Raises:
            EngineError: the profile does not take them.
        """
        self._forget()
        for name, shape in shapes:
            if not context.set_input_shape(name, shape):
                raise self._failed(f"refuses the shape {tuple(shape)} of {name}")

    def shape_of(self, context: Any, name: str) -> tuple[int, ...]:
        """How large an output will be, where all inputs are known.

        Raises:
            EngineError: it would follow from what is computed.
        """
        shape = tuple(context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise self._failed(f"does not know how large {name} will be")
        return shape

    def launch(self, context: Any) -> None:
        """Put a context's work on the stream; its shapes and addresses are set.

        Raises:
            DeviceError: too little memory for what these shapes need beside their tensors.
            EngineError: TensorRT refuses.
        """
        self._forget()
        scratch = context.update_device_memory_size_for_shapes()
        context.set_device_memory(self.device.reserve("scratch", scratch), scratch)
        if not context.execute_async_v3(self.device.stream):
            raise self._failed("cannot run the engine")

    def _forget(self) -> None:
        """Let an error tell what TensorRT says from now on."""
        library_log(self.library).lines.clear()

    def _failed(self, what: str) -> EngineError:
        return EngineError(failure(self.library, what, library_log(self.library).errors()))
