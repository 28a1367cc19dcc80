"""Routes of this service: any task's answers, and what no other API tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from trbert_deploy.runtime.reading.examples import examples_of
from trbert_deploy.runtime.reading.records import Record
from trbert_deploy.serving.routes.common import Body, Models, listed, require_few, require_known
from trbert_deploy.serving.served import ServedModel
from trbert_deploy.tasks.question_answering import QuestionAnswering
from trbert_deploy.tasks.task import Prediction, Task, Text, TextList
from trbert_deploy.tasks.token_classification import TokenClassification

router = APIRouter(tags=["trbert-deploy"])


class AnswersRequest(Body):
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
        threshold: at which the texts were run, where the request chose it.
    """

    answers: list[dict[str, Any]]
    model: str
    threshold: float | None = None


class TagsParameters(BaseModel):
    """How tokens become entities: as the pipeline of transformers, or as the model says."""

    aggregation_strategy: str | None = None


class TagsRequest(Body):
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
    found = await _answer(body, model, texts, names, body.parameters, body.return_kept)
    told = [answer.to_json() for answer in found]
    return AnswersResponse(answers=told, model=model.name, threshold=body.threshold)


@router.post("/token-classification")
async def token_classification(
    body: TagsRequest, models: Models
) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
    """The entities of a text, or of each of several, with their places in it."""
    model = models.find(body.model, TokenClassification)
    texts = listed(body.inputs)
    names = require_few(model, texts, "inputs")
    found = await _answer(body, model, texts, names, _said(body.parameters))
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
    found = await _answer(body, model, texts, names, _said(body.parameters))
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
    texts: Sequence[Text | TextList],
    names: Sequence[str],
    options: Mapping[str, Any],
    return_kept: bool = False,
) -> list[Prediction]:
    pipeline = body.pipeline_of(model, **options)
    asked, results = await body.ask(model, pipeline, texts, names)
    return pipeline.told(asked, results, return_kept)
