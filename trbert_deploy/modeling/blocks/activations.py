"""The activations that transformers names for the supported families."""

from __future__ import annotations

from torch import nn

from trbert_deploy.errors import CheckpointError


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), as OpenAI's first models had it."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x * (1.702 * x).sigmoid()


class TanhGELU(nn.GELU):
    """GELU by its tanh approximation."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


#: Name in a configuration -> module. Several names stand for one function.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_python": nn.GELU,
    "gelu_new": TanhGELU,
    "gelu_fast": TanhGELU,
    "gelu_pytorch_tanh": TanhGELU,
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}


def require_activation(name: object, field: str = "hidden_act") -> str:
    """An activation's name, provided that it is computed here.

    Raises:
        CheckpointError: it is not.
    """
    if name not in ACTIVATIONS:
        raise CheckpointError(
            f"{field} is {name!r}: expected one of {', '.join(sorted(ACTIVATIONS))}"
        )
    return str(name)
