"""Which files hold a checkpoint's weights: one, or shards with an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trbert_deploy.errors import CheckpointError
from trbert_deploy.files import read_json
from trbert_deploy.modeling.checkpoints.adapters import ADAPTER_CONFIG, refuse_adapter
from trbert_deploy.modeling.checkpoints.sources import Source, require_inside
from trbert_deploy.modeling.checkpoints.weight_files import (
    INDEX_SUFFIX,
    PICKLE_FILE,
    SAFETENSORS_FILE,
    WHOLE_MODEL_FILES,
)

#: Endings of files that hold weights in some format, to name what was found.
_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".index", ".h5", ".keras", ".msgpack"}
    | {".onnx", ".gguf", ".ggml", ".ot", ".pb", ".tflite", ".xml"}
)
_NAMED = 4  # found files that an error names


@dataclass(frozen=True)
class Part:
    """One file of weights.

    Attributes:
        path: where it is on this machine.
        names: the tensors that the index says it holds; None without an index.
    """

    path: Path
    names: frozenset[str] | None = None


def find_parts(source: Source) -> list[Part]:
    """The files with the weights of ``source``; safetensors before pickles, whole before shards.

    Raises:
        CheckpointError: no weights in a format that is read, an adapter, an index that names
            nothing, a missing shard or a path outside; the hub is out of reach.
    """
    for name in WHOLE_MODEL_FILES:
        path = source.file(name)
        if path is not None:
            return _shards(path, source) if name.endswith(INDEX_SUFFIX) else [Part(path)]
    adapter = source.file(ADAPTER_CONFIG)
    if adapter is not None:
        refuse_adapter(adapter.parent, source.where)
    found = [name for name in source.names() if PurePosixPath(name).suffix in _WEIGHTS]
    listed = ", ".join(found[:_NAMED]) + (" and more" if len(found) > _NAMED else "")
    raise CheckpointError(
        f"{source.where} has no weights that can be read: found {listed or 'none'}, expected "
        f"{SAFETENSORS_FILE} or {PICKLE_FILE}, each whole or in shards with {INDEX_SUFFIX[1:]}; "
        "save the model again with save_pretrained of transformers in PyTorch"
    )


def _shards(index: Path, source: Source) -> list[Part]:
    """The shards of an index, in the order of their names."""
    weight_map = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index} has no weight_map: expected the shard of each tensor; save the model again"
        )
    held: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        held.setdefault(require_inside(shard, str(index)), set()).add(tensor)
    suffix = Path(index.name.removesuffix(INDEX_SUFFIX)).suffix
    parts = []
    for shard in sorted(held):
        if not shard.endswith(suffix):  # another format would be reported as damaged, or as code
            raise CheckpointError(f"{index} names the shard {shard}: expected files of {suffix}")
        path = source.file(shard)
        if path is None:
            raise CheckpointError(
                f"{source.where} lacks the shard {shard}, which {index.name} names: expected all "
                f"{len(held)} shards; copy or download the missing ones"
            )
        parts.append(Part(path, frozenset(held[shard])))
    return parts
