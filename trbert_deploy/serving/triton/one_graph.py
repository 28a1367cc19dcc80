"""config.pbtxt of a bundle's whole chain as one graph, which the server's ONNX Runtime runs."""

from __future__ import annotations

from trbert_deploy.bundle.manifest import GraphDescription, TensorDescription
from trbert_deploy.serving.triton.config import joined, quoted
from trbert_deploy.serving.triton.settings import Settings

#: numpy's name of a type -> the server's.
_TYPES = {"int64": "TYPE_INT64", "bool": "TYPE_BOOL", "float32": "TYPE_FP32"}


def graph_config_text(name: str, chain: GraphDescription, settings: Settings) -> str:
    """The text of a model's config.pbtxt.

    Args:
        chain: what it takes and gives; [B, ...] each, of which the server adds B itself.
    """
    return f"""\
name: {quoted(name)}
backend: "onnxruntime"
max_batch_size: {settings.max_batch_size}
input [
{joined([_tensor(each) for each in chain.inputs])}
]
output [
{joined([_tensor(each) for each in chain.outputs])}
]
# Requests of one length that come while an instance is busy run together when it is done.
dynamic_batching {{ max_queue_delay_microseconds: {settings.queue_delay_us} }}
instance_group [
  {{ count: {settings.instances} kind: KIND_AUTO }}
]
"""


def _tensor(tensor: TensorDescription) -> str:
    sizes = ", ".join(str(size) if isinstance(size, int) else "-1" for size in tensor.shape[1:])
    return (
        f"  {{ name: {quoted(tensor.name)} data_type: {_TYPES[tensor.dtype]} dims: [ {sizes} ] }}"
    )
