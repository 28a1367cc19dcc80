"""All tensors of a Hugging Face checkpoint, without building its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.checkpoints.adapters import refuse_adapter
from trbert_deploy.modeling.checkpoints.shards import Part, find_parts
from trbert_deploy.modeling.checkpoints.sources import files_of
from trbert_deploy.modeling.checkpoints.weight_files import read_pickle, read_safetensors

_SAFETENSORS = ".safetensors"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def read_tensors(source: str) -> dict[str, Tensor]:
    """Read the weights of a checkpoint.

    Args:
        source: checkpoint directory or hub name.

    Returns:
        The tensors under the names that the files have (``mend_names`` brings old ones up to date),
        in any shape, contiguous, on the CPU, and none in the memory of another. Floating ones are
        float32 and finite; integers and booleans have the type that they have in the file.

    Raises:
        StorageError: the path is a file, or unreadable.
        CheckpointError: no weights in a format that is read, an adapter, a missing or damaged file,
            shards that are not what the index says, code in a pickle, quantized weights, or a
            weight that is no finite number; the hub is out of reach.
    """
    origin = files_of(source)
    if Path(source).is_dir():
        refuse_adapter(Path(source))  # even beside a whole model, which is not what was tuned
    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()
    for part in find_parts(origin):
        for name, value in _held(part).items():
            tensor = _plain(value, name, part.path)
            if _shares(tensor, part.path, memory):
                tensor = tensor.clone()
            memory.add(tensor.data_ptr())
            tensors[name] = tensor
    if not tensors:
        raise CheckpointError(f"{source} has weights without a tensor: expected those of a model")
    return tensors


def _held(part: Part) -> dict[str, Any]:
    """What a file holds, which must be what the index says."""
    read = read_safetensors if part.path.suffix == _SAFETENSORS else read_pickle
    held = read(part.path)
    if part.names is None:
        return held
    for name in sorted(part.names ^ held.keys()):
        wrong = "lacks the tensor" if name in part.names else "holds a further tensor,"
        raise CheckpointError(
            f"{part.path} {wrong} {name}: expected what the index says of this shard; they are "
            "not of one save: copy or download the checkpoint again"
        )
    return held


def _plain(value: Any, name: str, path: Path) -> Tensor:
    """One tensor as the encoder takes it: contiguous, float32 where floating, and finite."""
    if not isinstance(value, Tensor):
        raise CheckpointError(
            f"{path} has {type(value).__name__} under the name {name}: expected tensors only, as "
            "torch.save(model.state_dict(), ...) writes them"
        )
    tensor = value.detach()
    floating = tensor.dtype in _FLOATS
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    # Integer weights are the quantized ones of a library that multiplies them by scales.
    whole = tensor.dtype in _INTEGERS and not name.endswith(".weight")
    if not dense or not (floating or whole):
        kind = str(tensor.dtype if dense else tensor.layout).removeprefix("torch.")
        raise CheckpointError(
            f"{path}: tensor {name} is {kind}: expected float32, float16, bfloat16 or float64; "
            "save the model again, neither quantized nor sparse"
        )
    if floating:
        tensor = tensor.to(torch.float32)
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path}: tensor {name} has values that are NaN or infinite: expected finite "
                "weights; the training diverged or the file is damaged: take an earlier checkpoint"
            )
    return tensor.contiguous()


def _shares(tensor: Tensor, path: Path, memory: set[int]) -> bool:
    """Whether a tensor is tied to one that starts at an address of ``memory``, or a part of one.

    In safetensors none is, though all lie in the memory of one mapped file.
    """
    if path.suffix == _SAFETENSORS:
        return False
    return tensor.data_ptr() in memory or tensor.untyped_storage().nbytes() != tensor.nbytes
