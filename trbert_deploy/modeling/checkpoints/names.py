"""Parameter names of older and wrapped checkpoints, made those of today."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from trbert_deploy.errors import CheckpointError

#: Wrappers: DataParallel puts its name first, torch.compile wherever it wrapped.
_DATA_PARALLEL = re.compile(r"^(module\.)+")
_COMPILED = re.compile(r"(?<![^.])_orig_mod\.")

#: BERT's names in TensorFlow: the scale and shift of a normalization.
_TENSORFLOW = re.compile(r"(norm\w*)\.(gamma|beta)$", re.IGNORECASE)
_TODAY = {"gamma": "weight", "beta": "bias"}

#: Buffers that older versions of transformers saved, and that follow from the configuration.
_STALE = re.compile(
    r"(^|\.)(position_ids|token_type_ids|\w*inv_freq|cos_cached|sin_cached|masked_bias)$"
)
_CAUSAL_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")

#: Weight norm in PyTorch, new and old: a weight in two factors.
_FACTORS = re.compile(r"(^|\.)(parametrizations\..+|weight_[gv])$")


def mend_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state under the names that transformers gives it today.

    Wrappers' prefixes go, TensorFlow's names of normalizations become weight and bias, and buffers
    that follow from the configuration are dropped. The tensors are those of ``state``, in its
    order; ``state`` stays as it is.

    Args:
        state: names and tensors of any shape and type.

    Raises:
        CheckpointError: a parametrized weight (weight norm), or two names that become one.
    """
    mended: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for old, tensor in state.items():
        name = _DATA_PARALLEL.sub("", _COMPILED.sub("", old))
        if is_stale(name, tensor):
            continue
        if _FACTORS.search(name):
            raise CheckpointError(
                f"tensor {old} is a factor of a parametrized weight: expected whole weights; apply "
                "torch.nn.utils.parametrize.remove_parametrizations (or remove_weight_norm) to the "
                "model and save it again"
            )
        name = _TENSORFLOW.sub(lambda found: f"{found[1]}.{_TODAY[found[2].lower()]}", name)
        if name in mended:
            raise CheckpointError(
                f"tensors {origin[name]} and {old} are both {name}: expected one of them; save the "
                "model again without its wrapper"
            )
        mended[name] = tensor
        origin[name] = old
    return mended


def is_stale(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a buffer that follows from the configuration.

    A causal mask is called bias, as are parameters; it has four dimensions, they have one.
    """
    if _CAUSAL_MASK.search(name):
        return tensor.ndim == 4
    return _STALE.search(name) is not None
