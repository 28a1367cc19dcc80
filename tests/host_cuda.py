"""CUDA's runtime bindings on host memory: as much of ``cuda.bindings.runtime`` as is called here.

What is put on a stream happens when somebody waits for it, as late as a GPU may do it: whoever
reads a result without waiting gets what was there before.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorInvalidResourceHandle = 400


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaDeviceAttr(IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class cudaMemPoolAttr(IntEnum):
    cudaMemPoolAttrReleaseThreshold = 4


class HostCuda:
    """A GPU of some bytes in host memory, with its streams.

    Args:
        total_bytes: its memory.
        devices: how many GPUs answer.
    """

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaDeviceAttr = cudaDeviceAttr
    cudaMemPoolAttr = cudaMemPoolAttr
    FRESH = 0xAB  # what memory holds that nobody has written

    def __init__(self, total_bytes: int = 2**30, devices: int = 1) -> None:
        self.total_bytes = total_bytes
        self.devices = devices
        self.memory: dict[int, np.ndarray] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.last_error = cudaError_t.cudaSuccess
        self.copied = dict.fromkeys(cudaMemcpyKind, 0)  # bytes, by direction

    @property
    def used_bytes(self) -> int:
        return sum(block.nbytes for block in self.memory.values())

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (self._status(cudaError_t.cudaErrorNoDevice, not self.devices), self.devices)

    def cudaDeviceGetAttribute(self, attribute: cudaDeviceAttr, device: int) -> tuple[Any, ...]:
        major = attribute == cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
        return (cudaError_t.cudaSuccess, 8 if major else 6)

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        stream = 1000 + len(self.streams)
        self.streams[stream] = []
        return (cudaError_t.cudaSuccess, stream)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        (status,) = self.cudaStreamSynchronize(stream)
        self.streams.pop(stream, None)
        return (status,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        waiting = self.streams.get(stream, [])
        while waiting:
            waiting.pop(0)()
        unknown = stream not in self.streams
        return (self._status(cudaError_t.cudaErrorInvalidResourceHandle, unknown),)

    def cudaMalloc(self, size_bytes: int) -> tuple[Any, ...]:
        if self.used_bytes + size_bytes > self.total_bytes:
            return (self._status(cudaError_t.cudaErrorMemoryAllocation, True), None)
        block = np.full(size_bytes, self.FRESH, np.uint8)
        self.memory[block.ctypes.data] = block
        return (cudaError_t.cudaSuccess, block.ctypes.data)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        for stream in self.streams:  # freeing waits for everything that runs
            self.cudaStreamSynchronize(stream)
        unknown = self.memory.pop(address, None) is None
        return (self._status(cudaError_t.cudaErrorInvalidValue, unknown),)

    def cudaMallocAsync(self, size_bytes: int, stream: int) -> tuple[Any, ...]:
        return self.cudaMalloc(size_bytes)

    def cudaFreeAsync(self, address: int, stream: int) -> tuple[Any, ...]:
        if stream not in self.streams:
            return (self._status(cudaError_t.cudaErrorInvalidResourceHandle, True),)
        self.launch(stream, lambda: self.memory.pop(address))
        return (cudaError_t.cudaSuccess,)

    def cudaDeviceGetDefaultMemPool(self, device: int) -> tuple[Any, ...]:
        return (cudaError_t.cudaSuccess, 1)

    def cudaMemPoolSetAttribute(self, pool: int, name: Any, value: Any) -> tuple[Any, ...]:
        assert value.getPtr()  # as the real bindings take it
        return (cudaError_t.cudaSuccess,)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return (cudaError_t.cudaSuccess, self.total_bytes - self.used_bytes, self.total_bytes)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        last, self.last_error = self.last_error, cudaError_t.cudaSuccess
        return (last,)

    def cudaMemcpyAsync(
        self, target: int, source: int, size_bytes: int, kind: cudaMemcpyKind, stream: int
    ) -> tuple[Any, ...]:
        self.copied[kind] += size_bytes
        addresses = {
            cudaMemcpyKind.cudaMemcpyHostToDevice: [target],
            cudaMemcpyKind.cudaMemcpyDeviceToHost: [source],
            cudaMemcpyKind.cudaMemcpyDeviceToDevice: [target, source],
        }[kind]
        if not all(self._holds(address, size_bytes) for address in addresses):
            return (self._status(cudaError_t.cudaErrorInvalidValue, True),)
        if kind == cudaMemcpyKind.cudaMemcpyHostToDevice:
            # Pageable memory has been read when the call returns.
            staged = ctypes.string_at(source, size_bytes)
            self.launch(stream, lambda: ctypes.memmove(target, staged, size_bytes))
        else:
            self.launch(stream, lambda: ctypes.memmove(target, source, size_bytes))
        return (cudaError_t.cudaSuccess,)

    def _holds(self, address: int, size_bytes: int) -> bool:
        """Whether so many bytes lie in one block."""
        return any(
            start <= address and address + size_bytes <= start + block.nbytes
            for start, block in self.memory.items()
        )

    def launch(self, stream: int, work: Callable[[], Any]) -> None:
        """Put work on a stream, as a kernel is."""
        self.streams[stream].append(work)

    def _status(self, error: cudaError_t, failed: bool) -> cudaError_t:
        if not failed:
            return cudaError_t.cudaSuccess
        self.last_error = error
        return error
