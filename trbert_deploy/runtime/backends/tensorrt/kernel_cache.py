"""What TensorRT for RTX compiled on this machine, kept for the next process.

Its engines are finished by a compiler when they first meet a GPU and a shape, which takes seconds.
TensorRT says of what was kept whether it fits this GPU, driver and version; what does not is
compiled anew.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from trbert_deploy.errors import StorageError
from trbert_deploy.files import staged_file
from trbert_deploy.runtime.backends.tensorrt.library import TensorRT


class KernelCache:
    """Reads what earlier processes compiled, and writes what this one did when it is let go."""

    def __init__(self, library: TensorRT) -> None:
        self._path = user_cache_path("trbert-deploy") / f"rtx-{library.version}.kernels"
        self._kernels: Any = None

    def config_for(self, engine: Any, strategy: Any) -> Any:
        """How a context of an engine is made.

        Args:
            strategy: by which it gets its memory.
        """
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if self._kernels is None:
            self._kernels = config.create_runtime_cache()
            known = self._read()
            weakref.finalize(self, _write, self._path, self._kernels, known)
        config.set_runtime_cache(self._kernels)
        return config

    def _read(self) -> bytes:
        """What was kept, if TensorRT takes it."""
        with suppress(OSError):
            known = self._path.read_bytes()
            if self._kernels.deserialize(known):
                return known
        return b""


def _write(path: Path, kernels: Any, known: bytes) -> None:
    made = bytes(kernels.serialize())
    if made != known:
        with suppress(OSError, StorageError), staged_file(path) as staging:  # or there is no place
            staging.write_bytes(made)
