"""Routes of this service: any task's answers, and what no other API tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.reading.examples import examples_of
from trbert_deploy.runtime.reading.records import Record
from trbert_deploy.serving.answered_at import noted_threshold
from trbert_deploy.serving.error_answers import documented
from trbert_deploy.serving.routes.common import (
    Body,
    LexiconBody,
    Models,
    listed,
    require_few,
    require_known,
)
from trbert_deploy.serving.served import ServedModel
from trbert_deploy.tasks.examples import Text, TextList
from trbert_deploy.tasks.predictions import Prediction
from trbert_deploy.tasks.question_answering import QuestionAnswering
from trbert_deploy.tasks.task import Task
from trbert_deploy.tasks.token_classification import TokenClassification

router = APIRouter(tags=["trbert-deploy"], responses=documented())
#: A page loads nothing, and asks nobody but its service.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
)


class AnswersRequest(LexiconBody):
    """Texts for any task, as ``trbert-deploy predict`` reads them."""

    inputs: str | list[str | dict[str, Any]] | dict[str, Any] = Field(
        examples=["A superb film.", [{"text": "A superb film.", "text_pair": "He returns."}]]
    )
    parameters: dict[str, Any] = Field(
        default={}, description="How the task answers (docs/tasks.md)."
    )
    return_kept: bool = Field(default=False, description="Tell which tokens survived each cut.")


class AnswersResponse(BaseModel):
    """What ``trbert-deploy predict`` prints of each text.

    Attributes:
        threshold: at which the texts were run, where that is not the model's own.
    """

    answers: list[dict[str, Any]]
    model: str
    threshold: float | None = None


class TagsParameters(BaseModel):
    """How tokens become entities: as the pipeline of transformers, or as the model says."""

    aggregation_strategy: str | None = None


class TagsRequest(LexiconBody):
    """Texts whose entities are asked for."""

    inputs: str | list[str] = Field(examples=["Lena Novak lives in Vienna."])
    parameters: TagsParameters | None = None


class Question(BaseModel):
    """A question, and the text that may answer it."""

    question: str = Field(examples=["Where does she live?"])
    context: str = Field(examples=["Lena Novak lives in Vienna."])


class QuestionsParameters(BaseModel):
    """Which answers are given: as the pipeline of transformers, or as the model says."""

    top_k: int | None = None
    max_answer_len: int | None = None
    handle_impossible_answer: bool | None = None


class QuestionsRequest(Body):
    """Questions about texts."""

    inputs: Question | list[Question]
    parameters: QuestionsParameters | None = None


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """A page on which a person asks a model, and sees at which cut each token leaves."""
    html = resources.files("trbert_deploy.serving").joinpath("page.html").read_bytes()
    return Response(html, media_type="text/html", headers={"Content-Security-Policy": _POLICY})


@router.post("/answers", response_model_exclude_none=True)
async def answers(body: AnswersRequest, models: Models) -> AnswersResponse:
    """Answers to texts by a model for any task."""
    model = models.find(body.model)
    given = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    names = require_few(model, given, "inputs")
    task = model.pipeline.task
    texts = [
        each if isinstance(each, str) else _read(each, name, task)
        for each, name in zip(given, names, strict=True)
    ]
    require_known(body.parameters, task.options)
    pipeline = await body.searching(body.pipeline_of(model, **body.parameters))
    asked, results = await body.ask(model, pipeline, texts, names)
    found = pipeline.told(asked, results, body.return_kept)
    told = [answer.to_json() for answer in found]
    if body.return_kept and len(asked.encodings) == len(told):  # none is read in several rows
        for answer, encoding in zip(told, asked.encodings, strict=True):
            answer["tokens"] = encoding.tokens
    return AnswersResponse(answers=told, model=model.name, threshold=noted_threshold())


@router.post("/token-classification")
async def token_classification(
    body: TagsRequest, models: Models
) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
    """The entities of a text, or of each of several, with their places in it."""
    model = models.find(body.model, TokenClassification)
    texts = listed(body.inputs)
    names = require_few(model, texts, "inputs")
    pipeline = await body.searching(body.pipeline_of(model, **_said(body.parameters)))
    found = await _answer(body, model, pipeline, texts, names)
    entities = [answer.to_json()["entities"] for answer in found]
    return entities[0] if isinstance(body.inputs, str) else entities


@router.post("/question-answering")
async def question_answering(
    body: QuestionsRequest, models: Models
) -> dict[str, Any] | list[dict[str, Any]]:
    """The part of a context that answers a question, with its place; of each of several."""
    model = models.find(body.model, QuestionAnswering)
    given = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    names = require_few(model, given, "inputs")
    texts = [(each.question, each.context) for each in given]
    pipeline = body.pipeline_of(model, **_said(body.parameters))
    found = await _answer(body, model, pipeline, texts, names)
    told = [answer.to_json() for answer in found]
    return told if isinstance(body.inputs, list) else told[0]


def _said(parameters: BaseModel | None) -> dict[str, Any]:
    return {} if parameters is None else parameters.model_dump()


def _read(record: Mapping[str, Any], name: str, task: Task) -> Text | TextList:
    """The texts of a record, in the columns of the task.

    Raises:
        DataError: it has none.
    """
    records = [Record(name, record)]
    (example,) = examples_of(records, name, task, with_targets=False, whole=True)
    return example.text


async def _answer(
    body: Body,
    model: ServedModel,
    pipeline: Pipeline,
    texts: Sequence[Text | TextList],
    names: Sequence[str],
) -> list[Prediction]:
    asked, results = await body.ask(model, pipeline, texts, names)
    return pipeline.told(asked, results)
