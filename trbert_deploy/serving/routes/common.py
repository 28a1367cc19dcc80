"""What the routes of all APIs have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.runtime.pipeline import Asked, Pipeline
from trbert_deploy.runtime.token_state import RowResult
from trbert_deploy.serving.refusals import NothingAsked
from trbert_deploy.serving.served import ServedModel, ServedModels
from trbert_deploy.tasks.examples import Text, TextList


def _served(request: Request) -> ServedModels:
    models = request.app.state.models
    assert isinstance(models, ServedModels)
    return models


#: The models of the service, as a route's argument.
Models = Annotated[ServedModels, Depends(_served)]


class Body(BaseModel):
    """What every request may say.

    Unknown fields are left aside: clients of other services send some that mean nothing here.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = Field(
        default=None, description="Which model answers, where there are several."
    )
    truncate: bool | None = Field(
        default=None, description="Cut texts that are too long, or refuse them."
    )
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Keep probability from which a token survives."
    )

    latency_budget_ms: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Instead of a threshold: milliseconds that a text of the longest length may "
        "take in the model.",
    )
    exit_confidence: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="How sure an exit must be for a text to leave with its answer; 1 for never. "
        "Of a model that has exits.",
    )

    def pipeline_of(self, model: ServedModel, **options: Any) -> Pipeline:
        """The model, cutting texts or not, whose texts leave and are answered as the request wants.

        Args:
            options: as ``Task.set_up`` takes them.

        Raises:
            ConfigError: nothing that the model's task has, or out of range; or a model without
                exits is to leave early.
        """
        pipeline = model.strict if self.truncate is False else model.pipeline
        return pipeline.leaving_from(self.exit_confidence).set_up(**options)

    async def ask(
        self,
        model: ServedModel,
        pipeline: Pipeline,
        texts: Sequence[Text | TextList],
        names: Sequence[str],
    ) -> tuple[Asked, list[RowResult]]:
        """Run texts with others that wait, at the operating point that the request wants.

        Raises:
            TrbertError: as ``ServedModel.ask``.
        """
        point = model.point_of(self.threshold, self.latency_budget_ms)
        return await model.ask(pipeline, texts, names, point)


class Phrase(BaseModel):
    """A phrase that is known by a tag."""

    phrase: str = Field(examples=["Lena Novak"], max_length=1000)
    tag: str = Field(examples=["PER"], max_length=1000)


#: Most phrases of one request: more are a lexicon of the bundle's.
MOST_PHRASES = 1000


class LexiconBody(Body):
    """What a request may say that entities are asked of."""

    lexicon: list[Phrase] = Field(
        default=[],
        max_length=MOST_PHRASES,
        description="Phrases with tags that texts are searched for, of a model that was trained "
        "with a lexicon.",
    )
    only_lexicon: bool = Field(
        default=False, description="Search for these alone, and not for the model's own."
    )

    async def searching(self, pipeline: Pipeline) -> Pipeline:
        """The model with the phrases of the request.

        Raises:
            ConfigError: it takes no lexicon, or does not know a tag.
            DataError: a phrase has nothing that can be seen.
        """
        own = pipeline.without_lexicon() if self.only_lexicon else pipeline
        if not self.lexicon:
            return own
        entries = [(each.phrase, each.tag) for each in self.lexicon]
        return await asyncio.to_thread(own.with_lexicon, entries, "lexicon")


def require_few(model: ServedModel, texts: Sequence[Any], field: str) -> list[str]:
    """What errors call the texts of a request.

    Raises:
        NothingAsked: there are none.
        DataError: there are more than a request may have.
    """
    if not texts:
        raise NothingAsked(f"{field} is empty: expected at least one text")
    most = model.limits.texts
    if len(texts) > most:
        raise DataError(f"{field} has {len(texts):,} texts: expected at most {most:,}")
    return [f"{field}[{place}]" for place in range(len(texts))]


def listed(inputs: str | list[str]) -> list[str]:
    """Texts of a field that may have a single one."""
    return [inputs] if isinstance(inputs, str) else inputs


#: Texts as some clients write them: one or several, each by itself or as the numbers of its tokens.
TextsOrIds = str | list[str | list[int]] | list[int]


async def texts_of(model: ServedModel, inputs: TextsOrIds, field: str) -> list[str]:
    """Texts of a field that may have them as numbers of the model's tokens.

    Raises:
        NothingAsked, DataError: as ``require_few``; a number that no token has.
    """
    single = isinstance(inputs, str) or (inputs and isinstance(inputs[0], int))
    given = cast(list[str | list[int]], [inputs] if single else inputs)
    numbered = {place: each for place, each in enumerate(given) if not isinstance(each, str)}
    if numbered:
        names = require_few(model, given, field)
        ids, called = list(numbered.values()), [names[place] for place in numbered]
        for place, text in zip(numbered, await decoded(model, ids, called), strict=True):
            given[place] = text
    return cast(list[str], given)


async def decoded(
    model: ServedModel,
    ids: Sequence[Sequence[int]],
    names: Sequence[str],
    skip_special_tokens: bool = True,
) -> list[str]:
    """The texts that numbers of tokens make.

    Args:
        names: what errors call the texts.

    Raises:
        DataError: a number that no token has.
    """
    size = model.pipeline.encoder.vocab_size
    for name, numbers in zip(names, ids, strict=True):
        for each in numbers:
            if not 0 <= each < size:
                raise DataError(f"{name} has {each}: expected numbers from 0 to {size - 1}")
    spelled = model.pipeline.tokenizer.spelling.decoded
    return await asyncio.to_thread(
        lambda: [spelled(list(each), skip_special_tokens) for each in ids]
    )


def require_known(options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse options that a task does not have.

    Raises:
        ConfigError: there are some.
    """
    for name in options:
        if name not in known:
            has = f"expected one of {', '.join(known)}" if known else "the model has none"
            raise ConfigError(f"unknown option {name}: {has}")
