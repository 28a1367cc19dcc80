"""The weights of several graphs, stored once."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from trbert_deploy.bundle.manifest import TRANSPOSED
from trbert_deploy.modeling.checkpoints.weight_files import write_safetensors

#: Tensors below this size stay inside the graph (shapes, indices, scalars).
_INLINE_BYTES = 1024


class SharedWeights:
    """The weights of several graphs, stored once in a safetensors file.

    The graphs refer to it as ONNX external data, by offset. Exporters transpose the weights
    of linear layers; such a tensor is stored as the graphs want it, so that a runtime can map
    it from the disk as it is, under its name with ``TRANSPOSED`` behind it.

    Args:
        parameters: by name; all of them are stored, whether a graph has them or not.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = {
            name: tensor.detach().contiguous() for name, tensor in parameters.items()
        }
        self._known: dict[str, str] = {}
        for name, tensor in self._parameters.items():
            self._known.setdefault(_digest(tensor.numpy()), name)
            if tensor.ndim == 2:
                self._known.setdefault(_digest(tensor.numpy().T), name + TRANSPOSED)
        self._used: set[str] = set()

    def take(self, proto: onnx.ModelProto, adopt: str = "") -> None:
        """Empty the graph's large initializers and note which weights they are.

        Those that lie in a file already are left there.

        Args:
            adopt: store those that are no parameters too, under a name with this before it; where
                it is empty they stay in the graph.
        """
        for initializer in proto.graph.initializer:
            if initializer.data_location == TensorProto.EXTERNAL:
                continue
            array = numpy_helper.to_array(initializer)
            if array.nbytes < _INLINE_BYTES:
                continue
            digest = _digest(array)
            name = self._known.get(digest)
            if name is None and adopt:
                name = self._known[digest] = f"{adopt}{len(self._known)}"
                self._parameters[name] = torch.from_numpy(array.copy())
            if name is None:
                continue
            self._used.add(name)
            initializer.ClearField("raw_data")
            initializer.data_location = TensorProto.EXTERNAL
            initializer.external_data.add(key="location", value=name)

    def save(self, path: Path) -> None:
        """Write every parameter once, in the orientation that the graphs use."""
        tensors = {}
        for name, tensor in self._parameters.items():
            turned = name + TRANSPOSED in self._used and name not in self._used
            tensors[name + TRANSPOSED if turned else name] = (
                tensor.T.contiguous() if turned else tensor
            )
            if name in self._used and name + TRANSPOSED in self._used:
                tensors[name + TRANSPOSED] = tensor.T.contiguous()
        write_safetensors(path, tensors)
        with path.open("rb") as file:
            (header_length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(header_length))
        base = 8 + header_length
        self._places = {
            name: (base + header[name]["data_offsets"][0], base + header[name]["data_offsets"][1])
            for name in tensors
        }
        self._file = path.name

    def link(self, proto: onnx.ModelProto) -> None:
        """Point the emptied initializers at their places in the file."""
        for initializer in proto.graph.initializer:
            if initializer.data_location != TensorProto.EXTERNAL:
                continue
            place = initializer.external_data[0].value
            if place not in self._places:  # a file, which it was in before
                continue
            start, stop = self._places[place]
            del initializer.external_data[:]
            for key, value in {
                "location": self._file,
                "offset": start,
                "length": stop - start,
            }.items():
                initializer.external_data.add(key=key, value=str(value))


def _digest(array: np.ndarray) -> str:
    header = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()
