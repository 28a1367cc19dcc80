"""The Open Inference Protocol, in JSON: what clients of Triton and KServe speak.

Which tensors a model takes and gives is in ``serving/tensors.py``. Here strings are of type BYTES,
those that come of shape [N] or [N, 1], those that go of shape [N].
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from trbert_deploy.errors import DataError
from trbert_deploy.serving.error_answers import documented
from trbert_deploy.serving.routes.common import Body, Models, require_few
from trbert_deploy.serving.tensors import (
    ANSWER,
    TEXT,
    TEXT_PAIR,
    inputs_of,
    numbers_of,
    outputs_of,
    strings_of,
    texts_of,
    values_of,
)
from trbert_deploy.tasks.task import Text
from trbert_deploy.version import __version__

#: Its clients do not say that what they send is JSON.
router = APIRouter(
    prefix="/v2",
    tags=["Open Inference Protocol"],
    strict_content_type=False,
    responses=documented(),
)


class Tensor(BaseModel):
    """A tensor of strings."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str = Field(examples=[TEXT])
    shape: list[int] = Field(examples=[[1]])
    datatype: str = Field(examples=["BYTES"])
    data: list[Any] = Field(examples=[["A superb film."]])


class Wanted(BaseModel):
    """An output that is asked for."""

    name: str


class InferRequest(BaseModel):
    """Texts for a model."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str | None = None
    inputs: list[Tensor]
    outputs: list[Wanted] | None = None


@router.get("")
async def server() -> dict[str, Any]:
    """What answers."""
    return {"name": "trbert-deploy", "version": __version__, "extensions": []}


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """Whether the service runs."""
    return {"live": True}


@router.get("/health/ready")
async def ready() -> dict[str, bool]:
    """Whether all models answer: they are loaded before the service listens."""
    return {"ready": True}


@router.get("/models/{name}/ready")
async def model_ready(name: str, models: Models) -> dict[str, Any]:
    """Whether a model answers."""
    return {"name": models.named(name).name, "ready": True}


@router.get("/models/{name}")
async def model_metadata(name: str, models: Models) -> dict[str, Any]:
    """What a model takes and gives."""
    task = models.named(name).pipeline.task
    return {
        "name": name,
        "versions": ["1"],
        "platform": "trbert-deploy",
        "inputs": [{"name": each, "datatype": "BYTES", "shape": [-1]} for each in inputs_of(task)],
        "outputs": [
            {"name": each, "datatype": "BYTES", "shape": [-1]}
            if width is None
            else {"name": each, "datatype": "FP32", "shape": [-1, width]}
            for each, width in outputs_of(task).items()
        ],
    }


@router.post("/models/{name}/infer")
async def infer(name: str, body: InferRequest, models: Models) -> dict[str, Any]:
    """Answers to texts, in order."""
    model = models.named(name)
    texts = _texts(body.inputs)
    names = require_few(model, texts, TEXT)
    plain = Body()
    pipeline = plain.pipeline_of(model)
    asked, results = await plain.ask(model, pipeline, texts, names)
    answers = pipeline.told(asked, results)
    numbers, known = numbers_of(pipeline.task), outputs_of(pipeline.task)
    outputs = []
    for wanted in known if body.outputs is None else [each.name for each in body.outputs]:
        if wanted not in known:
            raise DataError(f"there is no output {wanted!r}: expected {' or '.join(known)}")
        if numbers is not None and wanted == numbers.name:
            values = values_of(numbers, answers)
            outputs.append(_tensor(wanted, "FP32", list(values.shape), values.ravel().tolist()))
        else:
            told = strings_of(answers)
            outputs.append(_tensor(ANSWER, "BYTES", [len(told)], told))
    told_id = {} if body.id is None else {"id": body.id}
    return {"model_name": name, "model_version": "1", **told_id, "outputs": outputs}


def _tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def _texts(tensors: Sequence[Tensor]) -> list[Text]:
    """The texts, or pairs of texts, that tensors hold.

    Raises:
        DataError: a tensor that is unknown, missing, of a wrong type or shape, or given twice.
    """
    columns: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.name not in (TEXT, TEXT_PAIR) or tensor.name in columns:
            raise DataError(
                f"input {tensor.name!r}: expected {TEXT}, and {TEXT_PAIR} for pairs, once each"
            )
        columns[tensor.name] = _strings(tensor)
    return texts_of(columns)


def _strings(tensor: Tensor) -> list[str]:
    """The strings of a tensor, whose rows may be lists."""
    flat = [each for row in tensor.data for each in (row if isinstance(row, list) else [row])]
    shape = tensor.shape
    fits = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    if not (fits and prod(shape) == len(flat)):
        raise DataError(
            f"{tensor.name} has {len(flat)} values and the shape {shape}: expected [N] or [N, 1]"
        )
    if tensor.datatype != "BYTES" or not all(isinstance(each, str) for each in flat):
        raise DataError(f"{tensor.name} is of type {tensor.datatype}: expected BYTES, strings")
    return flat
