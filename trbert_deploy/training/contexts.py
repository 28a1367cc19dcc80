"""Contexts to compute in: half precision, and without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def autocast(device: torch.device) -> torch.autocast:
    """bf16 where the processor or the GPU computes in it, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=native)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout and gradients off."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
