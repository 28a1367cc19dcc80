"""The Open Inference Protocol, in JSON: what clients of Triton and KServe speak.

A model takes the tensor ``text``, and ``text_pair`` where it reads pairs, of type BYTES and shape
[N] or [N, 1]. It gives ``answer``, BYTES [N]: what ``trbert-deploy predict`` prints of each text;
and where answers are numbers, these: ``scores`` FP32 [N, C] or ``embedding`` FP32 [N, D].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from trbert_deploy.errors import DataError
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.serving.error_answers import documented
from trbert_deploy.serving.routes.common import Body, Models, require_few
from trbert_deploy.serving.served import ServedModel
from trbert_deploy.tasks.feature_extraction import FeatureExtraction
from trbert_deploy.tasks.task import Prediction, Text
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.tasks.text_ranking import TextRanking
from trbert_deploy.version import __version__

#: Its clients do not say that what they send is JSON.
router = APIRouter(
    prefix="/v2",
    tags=["Open Inference Protocol"],
    strict_content_type=False,
    responses=documented(),
)

TEXT, TEXT_PAIR, ANSWER = "text", "text_pair", "answer"


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


def _scores(pipeline: Pipeline, answers: Sequence[Prediction]) -> NDArray[np.float32]:
    told = [answer.to_json()["scores"] for answer in answers]
    return np.array([[each[label] for label in pipeline.labels] for each in told], np.float32)


def _relevance(pipeline: Pipeline, answers: Sequence[Prediction]) -> NDArray[np.float32]:
    return np.array([[answer.to_json()["score"]] for answer in answers], np.float32)


def _embedding(pipeline: Pipeline, answers: Sequence[Prediction]) -> NDArray[np.float32]:
    return np.array([answer.to_json()["embedding"] for answer in answers], np.float32)


#: Task -> the output beside ``answer``, and what makes it: [N, C] or [N, D].
_NUMBERS: dict[type, tuple[str, Callable[[Pipeline, Sequence[Prediction]], NDArray[np.float32]]]]
_NUMBERS = {
    TextClassification: ("scores", _scores),
    TextRanking: ("scores", _relevance),
    FeatureExtraction: ("embedding", _embedding),
}


def _numbers_of(model: ServedModel) -> Any:
    task = model.pipeline.task
    return next((made for kind, made in _NUMBERS.items() if isinstance(task, kind)), None)


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
    model = models.named(name)
    outputs = [{"name": ANSWER, "datatype": "BYTES", "shape": [-1]}]
    if numbers := _numbers_of(model):
        outputs.append({"name": numbers[0], "datatype": "FP32", "shape": [-1, -1]})
    return {
        "name": name,
        "versions": ["1"],
        "platform": "trbert-deploy",
        "inputs": [
            {"name": each, "datatype": "BYTES", "shape": [-1]} for each in (TEXT, TEXT_PAIR)
        ],
        "outputs": outputs,
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
    numbers = _numbers_of(model)
    known = [ANSWER, *([numbers[0]] if numbers else [])]
    outputs = []
    for wanted in known if body.outputs is None else [each.name for each in body.outputs]:
        if wanted not in known:
            raise DataError(f"there is no output {wanted!r}: expected {' or '.join(known)}")
        if wanted == ANSWER:
            told = [json.dumps(answer.to_json(), ensure_ascii=False) for answer in answers]
            outputs.append(_tensor(ANSWER, "BYTES", [len(told)], told))
        else:
            values = numbers[1](pipeline, answers)
            outputs.append(_tensor(wanted, "FP32", list(values.shape), values.ravel().tolist()))
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
    if TEXT not in columns:
        raise DataError(f"there is no input {TEXT}: expected strings of that name")
    pairs = columns.get(TEXT_PAIR)
    if pairs is None:
        return list(columns[TEXT])
    if len(pairs) != len(columns[TEXT]):
        raise DataError(
            f"{TEXT_PAIR} has {len(pairs)} strings and {TEXT} {len(columns[TEXT])}: expected as "
            "many"
        )
    return list(zip(columns[TEXT], pairs, strict=True))


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
