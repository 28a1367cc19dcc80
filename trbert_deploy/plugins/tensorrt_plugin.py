"""``CompactTokens`` as a plugin of standard TensorRT, on the kernels of ``padded_compaction``.

As many tokens survive as the rule says: the number of slots follows from data, which TensorRT takes
from a plugin as a size tensor, one of its outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trbert_deploy.errors import EngineError
from trbert_deploy.plugins import DOMAIN, OPERATOR, PLUGIN_VERSION
from trbert_deploy.plugins.padded_compaction import compact_padded

#: Place of the number of slots among the outputs.
_SLOTS = 3
_NUM_OUTPUTS = 4


@cache
def register(trt: Any) -> Any:
    """Let TensorRT know the plugin, for as long as the process lasts.

    Args:
        trt: TensorRT's module.

    Returns:
        What creates plugins, which the registry does not keep.

    Raises:
        EngineError: something else is registered under the name.
    """
    creator = creator_of(trt)
    if not trt.get_plugin_registry().register_creator(creator, DOMAIN):
        raise EngineError(
            f"TensorRT knows another plugin {OPERATOR} of {DOMAIN}: load one of the two alone"
        )
    return creator


def creator_of(trt: Any) -> Any:
    """What makes plugins for the parser, and of what an engine has written down of them."""
    plugin = plugin_type(trt)
    base: Any = trt.IPluginCreatorV3One

    class Creator(base):  # type: ignore[misc]  # known only at run time
        def __init__(self) -> None:
            super().__init__()
            self.name = OPERATOR
            self.plugin_namespace = DOMAIN
            self.plugin_version = PLUGIN_VERSION
            self.field_names = trt.PluginFieldCollection([])

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            return plugin()

    return Creator()


def plugin_type(trt: Any) -> Any:
    """The plugin's class, over TensorRT's own base classes.

    Inputs and outputs are those of ``onnx_compaction.compact_tokens``, but for the capacity, and
    with the number of slots [] int64 at the end.
    """
    core: Any = trt.IPluginV3OneCore
    build: Any = trt.IPluginV3OneBuild
    run: Any = trt.IPluginV3OneRuntime
    kind = trt.DataType

    class Plugin(trt.IPluginV3, core, build, run):  # type: ignore[misc]
        def __init__(self) -> None:
            for base in (trt.IPluginV3, core, build, run):  # each has a part in C++
                base.__init__(self)
            self.plugin_name = OPERATOR
            self.plugin_namespace = DOMAIN
            self.plugin_version = PLUGIN_VERSION
            self.num_outputs = _NUM_OUTPUTS

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Plugin()

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def get_fields_to_serialize(self) -> Any:
            return trt.PluginFieldCollection([])

        def get_output_data_types(self, given: Sequence[Any]) -> list[Any]:
            return [given[0], kind.BOOL, kind.INT64, kind.INT64]

        def get_output_shapes(self, given: Sequence[Any], shapes: Any, builder: Any) -> list[Any]:
            batch, length, width = (given[0][axis] for axis in range(3))
            half = builder.operation(trt.DimensionOperation.CEIL_DIV, length, builder.constant(2))
            slots = builder.declare_size_tensor(_SLOTS, half, length)
            dims = [(batch, slots, width), (batch, slots), (batch, slots), ()]
            made = [trt.DimsExprs(len(each)) for each in dims]
            for shape, sizes in zip(made, dims, strict=True):
                for axis, size in enumerate(sizes):
                    shape[axis] = size
            return made

        def supports_format_combination(self, place: int, tensors: Any, inputs: int) -> bool:
            tensor = tensors[place].desc
            states = (kind.FLOAT, kind.HALF, kind.BF16)
            types = [
                states,
                (kind.FLOAT,),
                *[(kind.BOOL,)] * 2,
                (kind.INT64,),
                (tensors[0].desc.type,),
                (kind.BOOL,),
                *[(kind.INT64,)] * 2,
            ]
            return tensor.format == trt.TensorFormat.LINEAR and tensor.type in types[place]

        def get_workspace_size(self, given: Any, made: Any) -> int:
            return 4 * math.prod(given[1].max)  # a rank for each token

        def configure_plugin(self, given: Any, made: Any) -> None:
            """Nothing depends on it."""

        def on_shape_change(self, given: Any, made: Any) -> None:
            """Nothing depends on it."""

        def set_tactic(self, tactic: int) -> None:
            """There is one."""

        def enqueue(
            self,
            given: Any,
            made: Any,
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            batch, length, width = given[0].dims
            tokens = (batch, length)
            state = f"<i{4 if given[0].type == kind.FLOAT else 2}"  # only their bits matter
            memory = [
                (inputs[0], (batch, length, width), state),
                (inputs[1], tokens, "<f4"),
                (inputs[2], tokens, "|u1"),
                (inputs[3], tokens, "|u1"),
                (inputs[4], (batch, 1), "<i8"),
                (outputs[0], (batch, length, width), state),
                (outputs[1], tokens, "|u1"),
                (outputs[2], tokens, "<i8"),
                (outputs[3], (1,), "<i8"),
                (workspace, tokens, "<i4"),
            ]
            with on_stream(stream):
                compact_padded(*(tensor_at(*each) for each in memory))

    return Plugin


def on_stream(stream: int) -> AbstractContextManager[Any]:
    """What Triton launches in here goes to TensorRT's stream."""
    return torch.cuda.stream(torch.cuda.ExternalStream(stream))


class _DeviceMemory:
    """Memory of the GPU that belongs to somebody else, as PyTorch wants it described."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: str) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": kind,
            "version": 2,
        }


def tensor_at(address: int, shape: tuple[int, ...], kind: str) -> Tensor:
    """Memory of the GPU as a tensor, not copied.

    Args:
        kind: of its numbers, as numpy writes it.
    """
    return torch.as_tensor(_DeviceMemory(address, shape, kind), device="cuda")
