"""Execution contexts of engines on a device's stream."""

from __future__ import annotations

from typing import Any

from trbert_deploy.errors import EngineError
from trbert_deploy.runtime.backends.tensorrt.device import Device
from trbert_deploy.runtime.backends.tensorrt.library import TensorRT, failure, library_log


def make_context(library: TensorRT, engine: Any, device: Device, profile: int) -> Any:
    """A context of an engine for one of its profiles, whose scratch memory ``launch`` gives.

    Raises:
        EngineError: TensorRT makes none.
    """
    strategy = library.module.ExecutionContextAllocationStrategy.USER_MANAGED
    context = engine.create_execution_context(strategy)
    if context is None:
        reasons = library_log(library).errors()
        raise EngineError(failure(library, "cannot make a context", reasons))
    context.set_optimization_profile_async(profile, device.stream)
    device.synchronize()
    return context


def launch(library: TensorRT, context: Any, device: Device) -> None:
    """Put a context's work on the stream; its shapes and addresses are set.

    Raises:
        DeviceError: too little memory for what these shapes need beside their tensors.
        EngineError: TensorRT refuses.
    """
    scratch = context.update_device_memory_size_for_shapes()
    context.set_device_memory(device.reserve("scratch", scratch), scratch)
    if not context.execute_async_v3(device.stream):
        reasons = library_log(library).errors()
        raise EngineError(failure(library, "cannot run the engine", reasons))
