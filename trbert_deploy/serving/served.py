"""A model that answers many requests at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

from trbert_deploy.runtime.pipeline import Asked, Pipeline
from trbert_deploy.runtime.token_state import RowResult, TokenRow, results_of_parts
from trbert_deploy.runtime.tokenizing import tokenizer_of
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.serving.queue import RowQueue
from trbert_deploy.tasks.task import Text, TextList


@dataclass(frozen=True)
class Limits:
    """What a service takes.

    Attributes:
        texts: most of one request.
        body_bytes: most of a request's body.
        waiting_tokens: most that wait for the model, of all requests.
        timeout_s: seconds after which a request that still waits is refused.
    """

    texts: int = 1024
    body_bytes: int = 8 << 20
    waiting_tokens: int = 1 << 18
    timeout_s: float = 30.0


class ServedModel:
    """A pipeline behind a queue.

    Texts become tokens in threads of their own, rows of tokens run in the queue's: the event loop
    computes nothing.

    Attributes:
        pipeline: cuts or refuses texts that are too long, as it was loaded.
        strict: the same model, which refuses them.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits) -> None:
        self.pipeline = pipeline
        self.limits = limits
        self.strict = copy(pipeline)
        self.strict.tokenizer = tokenizer_of(
            pipeline.require_bundle(), pipeline.tokenizer.max_length, truncate=False
        )
        self._queue = RowQueue(self._run, pipeline.chain.max_batch_tokens, limits.waiting_tokens)

    async def ask(
        self, pipeline: Pipeline, texts: Sequence[Text | TextList], names: Sequence[str]
    ) -> tuple[Asked, list[RowResult]]:
        """Run texts with the others that wait.

        Args:
            pipeline: this model, set up as the request wants it.
            names: what errors call the texts.

        Returns:
            The texts' rows, and what the model says of each.

        Raises:
            DataError, LengthError, OutputError: as a call of the pipeline.
            Refusal: not now.
        """
        asked = await asyncio.to_thread(pipeline.ask, texts, names)
        parts = [part for row in asked.rows for part in row.parts]
        future = self._queue.submit(parts, timeout_s=self.limits.timeout_s)
        results = await asyncio.wrap_future(future)
        return asked, results_of_parts(asked.rows, results)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for the model."""
        return self._queue.waiting_tokens

    def close(self, grace_s: float) -> None:
        """Answer what waits, and take no more."""
        self._queue.close(grace_s)

    def _run(self, point: OperatingPoint | None, rows: list[TokenRow]) -> list[RowResult]:
        chain = self.pipeline.chain
        return (chain if point is None else chain.at(point)).run(rows)
