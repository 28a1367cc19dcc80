"""The Open Inference Protocol: what clients of Triton and KServe speak, in JSON or with tensors as
bytes (``serving/binary_tensors.py``).

Which tensors a model takes and gives is in ``serving/tensors.py``. Here strings are of type BYTES,
those that come of shape [N] or [N, 1], those that go of shape [N].
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from math import prod
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Message

from trbert_deploy.errors import DataError
from trbert_deploy.serving.binary_tensors import (
    JSON_LENGTH,
    SIZE,
    binary_answer,
    bytes_of,
    with_data,
)
from trbert_deploy.serving.error_answers import documented
from trbert_deploy.serving.routes.common import Body, Models, require_few
from trbert_deploy.serving.tensors import (
    TEXT,
    TEXT_PAIR,
    inputs_of,
    numbers_of,
    outputs_of,
    strings_of,
    texts_of,
    values_of,
)
from trbert_deploy.tasks.examples import Text
from trbert_deploy.version import __version__


class _Route(APIRoute):
    """A route that reads tensors as bytes, too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            json_length = request.headers.get(JSON_LENGTH)
            if json_length is not None:
                request = _replaced(request, with_data(await request.body(), json_length))
            return await handle(request)

        return answer


def _replaced(request: Request, body: bytes) -> Request:
    """A request with another body, which is JSON."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    others = [each for each in request.scope["headers"] if each[0] != b"content-type"]
    headers = [*others, (b"content-type", b"application/json")]
    return Request({**request.scope, "headers": headers}, receive)


#: Its clients do not say that what they send is JSON.
router = APIRouter(
    prefix="/v2",
    route_class=_Route,
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


class WantedParameters(BaseModel):
    """How an output is told."""

    model_config = ConfigDict(extra="ignore", strict=True)

    binary_data: bool | None = Field(default=None, description="As bytes behind the JSON.")


class Wanted(BaseModel):
    """An output that is asked for."""

    name: str
    parameters: WantedParameters | None = None


class RequestParameters(BaseModel):
    """How outputs are told that do not say it themselves."""

    model_config = ConfigDict(extra="ignore", strict=True)

    binary_data_output: bool = False


class InferRequest(BaseModel):
    """Texts for a model."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str | None = None
    inputs: list[Tensor]
    outputs: list[Wanted] | None = None
    parameters: RequestParameters | None = None


@router.get("")
async def server() -> dict[str, Any]:
    """What answers."""
    return {"name": "trbert-deploy", "version": __version__, "extensions": ["binary_tensor_data"]}


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
async def infer(name: str, body: InferRequest, models: Models) -> Any:
    """Answers to texts, in order.

    Tensors may come and go as bytes behind the JSON, with `Inference-Header-Content-Length`.
    """
    model = models.named(name)
    texts = _texts(body.inputs)
    names = require_few(model, texts, TEXT)
    plain = Body()
    pipeline = plain.pipeline_of(model)
    asked, results = await plain.ask(model, pipeline, texts, names)
    answers = pipeline.told(asked, results)
    numbers, known = numbers_of(pipeline.task), outputs_of(pipeline.task)
    output: dict[str, Any]
    outputs: list[dict[str, Any]] = []
    data: list[bytes] = []
    for wanted, as_bytes in _wanted(body, list(known)):
        if wanted not in known:
            raise DataError(f"there is no output {wanted!r}: expected {' or '.join(known)}")
        values: list[str] | NDArray[np.float32]
        if numbers is not None and wanted == numbers.name:
            values = values_of(numbers, answers)
            output = {"name": wanted, "datatype": "FP32", "shape": list(values.shape)}
        else:
            values = strings_of(answers)
            output = {"name": wanted, "datatype": "BYTES", "shape": [len(values)]}
        if as_bytes:
            data.append(bytes_of(values))
            output["parameters"] = {SIZE: len(data[-1])}
        else:
            output["data"] = values if isinstance(values, list) else values.ravel().tolist()
        outputs.append(output)
    told_id = {} if body.id is None else {"id": body.id}
    answer = {"model_name": name, "model_version": "1", **told_id, "outputs": outputs}
    if not data:
        return answer
    content, headers = binary_answer(answer, data)
    return Response(content, headers=headers)


def _wanted(body: InferRequest, known: Sequence[str]) -> list[tuple[str, bool]]:
    """Names of the outputs that a request asks for, and whether as bytes."""
    usual = body.parameters is not None and body.parameters.binary_data_output
    if body.outputs is None:
        return [(name, usual) for name in known]
    wanted = []
    for each in body.outputs:
        own = None if each.parameters is None else each.parameters.binary_data
        wanted.append((each.name, usual if own is None else own))
    return wanted


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
    if tensor.datatype != "BYTES":
        raise DataError(f"{tensor.name} is of type {tensor.datatype}: expected BYTES, strings")
    flat = [each for row in tensor.data for each in (row if isinstance(row, list) else [row])]
    shape = tensor.shape
    fits = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    if not (fits and prod(shape) == len(flat)):
        raise DataError(
            f"{tensor.name} has {len(flat)} values and the shape {shape}: expected [N] or [N, 1]"
        )
    if not all(isinstance(each, str) for each in flat):
        raise DataError(f"{tensor.name} has other values than strings: expected BYTES, strings")
    return flat
