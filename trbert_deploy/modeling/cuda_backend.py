"""Runs a bundle with PyTorch on an NVIDIA GPU: states stay there from cut to cut."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import DeviceError
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.recorded_chain import RecordedChain
from trbert_deploy.modeling.torch_backend import load_model
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.token_state import RowResult, TokenRow

DEFAULT_PRECISION = "fp16"


class CudaBackend:
    """The chain of ``modeling/recorded_chain.py``, for any number of threads, one at a time.

    Args:
        model: moves to the device, in a copy.
        device: of PyTorch; another than a GPU serves the tests.
        precision: fp32, fp16 or bf16.
    """

    #: Operating points whose recordings are kept; the oldest goes first.
    MOST_POINTS = 4

    def __init__(self, model: ReducedModel, device: torch.device, precision: str) -> None:
        self._chain = RecordedChain(model, device, precision)
        self._points: dict[ReductionConfig, RecordedChain] = {}
        self._lock = threading.Lock()
        on_gpu = device.type == "cuda"
        self.description = {
            "backend": "cuda",
            "version": torch.__version__,
            "provider": torch.cuda.get_device_name(device) if on_gpu else "cpu",
            "precision": precision,
            "threads": "1",
        }

    def run_rows(
        self, rows: Sequence[TokenRow], reduction: ReductionConfig | None, max_batch_tokens: int
    ) -> list[RowResult]:
        """As ``RowsBackend.run_rows``."""
        if not rows:
            return []
        with self._lock:  # recordings have one set of tensors
            if reduction is None or not reduction.cuts:
                self._chain.max_batch_tokens = max_batch_tokens
                return self._chain.run_dense(rows)
            chain = self._at(reduction)
            chain.max_batch_tokens = max_batch_tokens
            return chain.run(rows)

    def _at(self, reduction: ReductionConfig) -> RecordedChain:
        chain = self._points.pop(reduction, None) or self._chain.at(reduction)
        self._points[reduction] = chain
        if len(self._points) > self.MOST_POINTS:
            del self._points[next(iter(self._points))]
        return chain


def open_backend(bundle: Bundle, options: BackendOptions) -> CudaBackend:
    """Open ``bundle`` on the first GPU that PyTorch sees.

    Raises:
        DeviceError: there is none.
    """
    require_gpu()
    precision = options.precision or DEFAULT_PRECISION
    return CudaBackend(load_model(bundle), torch.device("cuda"), precision)


def require_gpu() -> None:
    """Refuse to go on without a GPU.

    Raises:
        DeviceError: PyTorch sees none; says why, as far as it is known.
    """
    if torch.version.cuda is None:
        raise DeviceError(
            f"backend cuda needs a build of PyTorch for CUDA: this is {torch.__version__}, for "
            "CPUs; install another, or choose another backend"
        )
    if not torch.cuda.is_available():
        raise DeviceError(
            "backend cuda needs an NVIDIA GPU, and PyTorch sees none: check nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or choose another backend"
        )
