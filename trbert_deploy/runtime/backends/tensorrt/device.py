"""Memory of a GPU on one CUDA stream: named buffers, and blocks that come and go."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from trbert_deploy.errors import DeviceError
from trbert_deploy.runtime.backends.tensorrt.library import check_cuda, import_cuda, unsigned

_MIB = 2**20


@dataclass(frozen=True)
class _Buffer:
    address: int
    size_bytes: int


class Block:
    """Memory that is given back, in the stream's order, when nobody refers to it any more.

    Attributes:
        address: where it begins.
    """

    def __init__(self, device: Device, cuda: Any, address: int) -> None:
        self.address = address
        self._device = device  # whose stream outlives it
        weakref.finalize(self, cuda.cudaFreeAsync, address, device.stream)


class Device:
    """A CUDA stream, and named buffers of GPU memory that grow and are reused.

    Everything that it holds is given back when nobody refers to it any more, or by ``close``.

    Raises:
        DeviceError: no stream can be made.
        MissingDependencyError: CUDA's bindings are not installed.
    """

    def __init__(self) -> None:
        self._cuda = import_cuda()
        self._stream = check_cuda(self._cuda.cudaStreamCreate())
        self._buffers: dict[str, _Buffer] = {}
        # What blocks give back stays with the process, as its next blocks need it.
        pool = check_cuda(self._cuda.cudaDeviceGetDefaultMemPool(0))
        threshold = self._cuda.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
        check_cuda(self._cuda.cudaMemPoolSetAttribute(pool, threshold, unsigned(2**64 - 1)))
        self.close = weakref.finalize(self, _release, self._cuda, self._stream, self._buffers)

    @property
    def stream(self) -> int:
        return int(self._stream)

    def reserve(self, name: str, size_bytes: int) -> int:
        """Address of the buffer ``name``, of at least ``size_bytes``; growing loses its content.

        Raises:
            DeviceError: the GPU has no such memory left.
        """
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size_bytes < size_bytes:
            self._free(name)  # first, so that old and new need not fit together
            buffer = self._buffers[name] = self._allocate(name, max(size_bytes, 1))
        return buffer.address

    def allocate(self, what: str, size_bytes: int) -> Block:
        """Memory of its own, for calls on the stream.

        Args:
            what: it is for, in an error.

        Raises:
            DeviceError: the GPU has no such memory left.
        """
        result = self._cuda.cudaMallocAsync(max(size_bytes, 1), self._stream)
        self._require_memory(what, size_bytes, result[0])
        return Block(self, self._cuda, int(check_cuda(result)))

    def upload(self, name: str, array: np.ndarray) -> int:
        """Copy a contiguous array into the buffer ``name``; returns its address."""
        address = self.reserve(name, array.nbytes)
        # From pageable memory the call returns when the array has been read.
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, array.ctypes.data, array.nbytes, kind)
        return address

    def download(self, name: str, array: np.ndarray) -> None:
        """Copy the buffer ``name`` into an array, which is filled after ``synchronize``."""
        self.read(self._buffers[name].address, array)

    def read(self, address: int, array: np.ndarray) -> None:
        """Copy memory into an array, which is filled after ``synchronize``."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, address, array.nbytes, kind)

    def move(self, target: int, source: int, size_bytes: int) -> None:
        """Copy memory of the GPU to another place of it."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(target, source, size_bytes, kind)

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        check_cuda(self._cuda.cudaStreamSynchronize(self._stream))

    def _copy(self, target: int, source: int, size_bytes: int, kind: Any) -> None:
        check_cuda(self._cuda.cudaMemcpyAsync(target, source, size_bytes, kind, self._stream))

    def _allocate(self, name: str, size_bytes: int) -> _Buffer:
        result = self._cuda.cudaMalloc(size_bytes)
        self._require_memory(name, size_bytes, result[0])
        return _Buffer(int(check_cuda(result)), size_bytes)

    def _require_memory(self, name: str, size_bytes: int, status: Any) -> None:
        """Refuse to go on where the GPU had no such memory left.

        Raises:
            DeviceError: that is what ``status`` says.
        """
        if status == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            # It would stand as the last error, which TensorRT takes for one of its own.
            self._cuda.cudaGetLastError()
            free, total = check_cuda(self._cuda.cudaMemGetInfo())
            raise DeviceError(
                f"too little GPU memory for {name}: {-(-size_bytes // _MIB)} MiB are needed, "
                f"{free // _MIB} of {total // _MIB} MiB are free: free some, or run smaller "
                "batches (--max-batch-tokens)"
            )

    def _free(self, name: str) -> None:
        buffer = self._buffers.pop(name, None)
        if buffer is not None:
            check_cuda(self._cuda.cudaFree(buffer.address))


def _release(cuda: Any, stream: Any, buffers: dict[str, _Buffer]) -> None:
    """Give everything back; a failure here has been told by the call that it comes from."""
    for buffer in buffers.values():
        cuda.cudaFree(buffer.address)
    buffers.clear()
    cuda.cudaStreamDestroy(stream)
