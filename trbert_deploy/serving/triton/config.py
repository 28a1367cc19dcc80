"""config.pbtxt: what the server knows of a model before it runs it."""

from __future__ import annotations

import json

from trbert_deploy.runtime.backends.registry import BACKENDS
from trbert_deploy.serving.tensors import TEXT, inputs_of, outputs_of
from trbert_deploy.serving.triton.settings import Settings
from trbert_deploy.tasks.task import Task

#: What a backend runs on -> the server's word for devices that instances are put on.
_KINDS = {"cpu": "KIND_CPU", "gpu": "KIND_GPU", "any": "KIND_AUTO"}


def config_text(name: str, task: Task, settings: Settings) -> str:
    """The text of a model's config.pbtxt.

    Args:
        task: says which tensors there are.
    """
    loading = settings.loading
    known = BACKENDS.get(loading.backend)  # none of auto
    inputs = [_input(each) for each in inputs_of(task)]
    outputs = [_output(each, width) for each, width in outputs_of(task).items()]
    parameters = [_parameter(*each) for each in loading.to_parameters().items()]
    return f"""\
name: {quoted(name)}
backend: "python"
max_batch_size: {settings.max_batch_size}
input [
{joined(inputs)}
]
output [
{joined(outputs)}
]
# Requests that come while an instance is busy run together when it is done.
dynamic_batching {{ max_queue_delay_microseconds: {settings.queue_delay_us} }}
instance_group [
  {{ count: {settings.instances} kind: {_KINDS["any" if known is None else known.device]} }}
]
# What the bundle is loaded with.
parameters [
{joined(parameters)}
]
"""


def _input(name: str) -> str:
    optional = "" if name == TEXT else " optional: true"
    return f"  {{ name: {quoted(name)} data_type: TYPE_STRING dims: [ 1 ]{optional} }}"


def _output(name: str, width: int | None) -> str:
    kind, values = ("TYPE_STRING", 1) if width is None else ("TYPE_FP32", width)
    return f"  {{ name: {quoted(name)} data_type: {kind} dims: [ {values} ] }}"


def _parameter(name: str, value: str) -> str:
    return f"  {{ key: {quoted(name)} value: {{ string_value: {quoted(value)} }} }}"


def joined(entries: list[str]) -> str:
    """The entries of a list."""
    return ",\n".join(entries)


def quoted(text: str) -> str:
    """A string as the file has it."""
    return json.dumps(text)
