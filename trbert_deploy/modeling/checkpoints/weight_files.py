"""Files of weights, one at a time: safetensors, and pickles of nothing but tensors."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import struct
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trbert_deploy.errors import CheckpointError, StorageError, first_line
from trbert_deploy.files import staged_file

SAFETENSORS_FILE = "model.safetensors"
PICKLE_FILE = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
#: What holds, or leads to, the weights of a whole model, the preferred first.
WHOLE_MODEL_FILES = (
    SAFETENSORS_FILE,
    SAFETENSORS_FILE + INDEX_SUFFIX,
    PICKLE_FILE,
    PICKLE_FILE + INDEX_SUFFIX,
)

# What the restricted unpickler was seen to raise on damaged files.
_DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    struct.error,
    OSError,
)


def write_safetensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    with staged_file(path) as staging:
        try:
            save_file(tensors, staging, metadata=metadata)
        except SafetensorError as problem:  # so it calls a full disk, too
            raise StorageError(f"{path.name} cannot be written: {problem}") from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError) as problem:
        raise CheckpointError(f"{path} is damaged or truncated: {problem}") from None


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a file of ``torch.save`` without running what it holds.

    Returns:
        What the file has under each name, on the CPU: tensors where it is a state dict.

    Raises:
        CheckpointError: missing, damaged, no mapping of names, or with more than PyTorch's
            restricted unpickler reads, which builds tensors and plain containers alone.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that is refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except _DAMAGE as problem:
        raise CheckpointError(
            f"{path} holds code or is damaged ({_reason(problem)}): expected tensors only, in "
            f"safetensors; if you trust its author, convert it with: {_conversion(path)}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            f"{path} holds a {type(state).__name__}: expected names and their tensors, as "
            "torch.save(model.state_dict(), ...) writes them"
        )
    return state


def _reason(problem: BaseException) -> str:
    """Short, and without PyTorch's advice to load the file all the same."""
    asked = re.search(r"GLOBAL (\S+)", str(problem))
    if asked:
        return f"it asks for {asked[1]}"
    if isinstance(problem, pickle.UnpicklingError):
        return "refused by torch.load(weights_only=True)"
    return first_line(problem)


def _conversion(path: Path) -> str:
    """The shell line that turns the pickles of a directory into one safetensors file."""
    directory = json.dumps(str(path.parent))
    code = (
        "import pathlib, torch; from safetensors.torch import save_file; "
        f"d = pathlib.Path({directory}); save_file({{n: t.clone().contiguous() "
        f'for f in d.glob("{Path(PICKLE_FILE).stem}*.bin") '
        "for n, t in torch.load(f, weights_only=False).items() if torch.is_tensor(t)}, "
        f'd / "{SAFETENSORS_FILE}")'
    )
    return f"python -c {shlex.quote(code)}"
