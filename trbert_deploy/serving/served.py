"""Models that answer many requests at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass

from trbert_deploy.errors import ConfigError
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.autotune.latency_budget import LatencyTable, latency_table, within
from trbert_deploy.runtime.chain import Timing
from trbert_deploy.runtime.pipeline import Asked, Pipeline
from trbert_deploy.runtime.token_state import RowResult, TokenRow, results_of_parts
from trbert_deploy.runtime.tokenizing import tokenizer_of
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.serving import traces
from trbert_deploy.serving.answered_at import note_threshold
from trbert_deploy.serving.drift import Drift, kept_share
from trbert_deploy.serving.metrics import Metrics, ModelMetrics
from trbert_deploy.serving.queue import RowQueue
from trbert_deploy.serving.refusals import UnknownModel
from trbert_deploy.serving.shedding import Shedding, shedding_of
from trbert_deploy.tasks.examples import Text, TextList
from trbert_deploy.tasks.task import Task

#: Calls of a graph as large as its backend likes that a batch has tokens for.
BATCH_CALLS = 4


@dataclass(frozen=True)
class Limits:
    """What a service takes.

    Attributes:
        texts: most of one request.
        body_bytes: most of a request's body.
        waiting_tokens: most that wait for the model, of all requests.
        timeout_s: seconds after which a request that still waits is refused, or whose body has not
            come.
        thresholds: the lowest and the highest that a request may choose; none where None.
        min_agreement: with the dense model's answers, from 0 to 1, down to which a model drops
            more as requests wait; where None it never does.
    """

    texts: int = 1024
    body_bytes: int = 8 << 20
    waiting_tokens: int = 1 << 18
    timeout_s: float = 30.0
    thresholds: tuple[float, float] | None = None
    min_agreement: float | None = None


class ServedModel:
    """A pipeline behind a queue.

    Texts become tokens in threads of their own, rows of tokens run in the queue's: the event loop
    computes nothing.

    Args:
        name: by which requests ask for it; that of the bundle's folder by default.
        note: told what was measured, for latency budgets and of what may be shed.
        progress: told while it is measured.

    Raises:
        ConfigError: there is nothing that could be shed.

    Attributes:
        pipeline: cuts or refuses texts that are too long, as it was loaded.
        strict: the same model, which refuses them.
        batch_tokens: that go on together at most.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        limits: Limits,
        name: str | None = None,
        note: Callable[[str], None] = lambda message: None,
        progress: Progress = no_progress,
    ) -> None:
        self.name = name or pipeline.path.resolve().name
        self.pipeline = pipeline
        self.limits = limits
        self.strict = copy(pipeline)
        self.strict.tokenizer = tokenizer_of(
            pipeline.require_bundle(), pipeline.tokenizer.max_length, truncate=False
        )
        self._metrics: ModelMetrics | None = None
        self._drift = Drift(shares) if (shares := _calibration(pipeline)) else None
        self._latencies: LatencyTable = ()
        if limits.thresholds is not None and pipeline.reduction.cuts:
            bundle = pipeline.require_bundle()
            self._latencies = latency_table(bundle, pipeline.chain, note, progress)
        chain = pipeline.chain
        # More than a few calls' worth makes the first of a batch wait for its last, and saves none.
        self.batch_tokens = min(chain.max_batch_tokens, BATCH_CALLS * chain.call_tokens)
        self._shedding = Shedding(())
        if limits.min_agreement is not None:
            self._shedding = shedding_of(pipeline, limits.min_agreement, note, progress)
        self._queue = RowQueue(
            self._run,
            self.batch_tokens,
            limits.waiting_tokens,
            self._shed,
            self._waited,
        )

    def point_of(self, threshold: float | None, budget_ms: float | None) -> OperatingPoint | None:
        """The operating point that a request wants; the model's own where it says nothing.

        Args:
            budget_ms: milliseconds that a text of the longest length may take in the model: the
                lowest threshold that the service allows and that takes at most so long, or else the
                fastest of them.

        Raises:
            ConfigError: the service does not allow it, or both are given.
        """
        if threshold is None and budget_ms is None:
            return None
        if threshold is not None and budget_ms is not None:
            raise ConfigError("a latency budget decides the threshold: give one of the two")
        allowed = self.limits.thresholds
        if allowed is None:
            raise ConfigError(
                "this service lets requests choose no operating point: leave threshold and "
                "latency_budget_ms out"
            )
        low, high = allowed
        if budget_ms is not None:
            within_limits = [each for each in self._latencies if low <= each[0] <= high]
            if not within_limits:
                raise ConfigError(
                    f"no latency is known between the thresholds {low:g} and {high:g} that this "
                    "service allows: give a threshold"
                )
            return OperatingPoint(within(within_limits, budget_ms)[0])
        assert threshold is not None
        if not low <= threshold <= high:
            raise ConfigError(
                f"threshold is {threshold:g}: this service allows {low:g} to {high:g}"
            )
        return OperatingPoint(threshold)

    async def ask(
        self,
        pipeline: Pipeline,
        texts: Sequence[Text | TextList],
        names: Sequence[str],
        point: OperatingPoint | None = None,
    ) -> tuple[Asked, list[RowResult]]:
        """Run texts with the others that wait.

        Args:
            pipeline: this model, set up as the request wants it.
            names: what errors call the texts.
            point: to run at; the model's own where None.

        Returns:
            The texts' rows, and what the model says of each.

        Raises:
            DataError, LengthError, OutputError: as a call of the pipeline.
            Refusal: not now.

        The answer's headers tell at which threshold they ran, where it is not the model's own.
        """
        came = time.monotonic()
        asked = await asyncio.to_thread(pipeline.ask, texts, names)
        parts = [part for row in asked.rows for part in row.parts]
        tokenized = time.monotonic()
        traces.part("tokenize", came, tokenized, texts=len(texts), tokens=sum(map(len, parts)))
        left = max(0.0, self.limits.timeout_s - (tokenized - came))
        future = self._queue.submit(parts, point, left)
        ran = await asyncio.wrap_future(future)
        at = {}
        if ran.point is not None and ran.point.threshold is not None:
            note_threshold(ran.point.threshold)
            at = {"threshold": ran.point.threshold}
        traces.part("wait", tokenized, ran.began)
        traces.part("run", ran.began, time.monotonic(), model=self.name, rows=len(parts), **at)
        return asked, results_of_parts(asked.rows, ran.results)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for the model."""
        return self._queue.waiting_tokens

    def close(self, grace_s: float) -> None:
        """Answer what waits, and take no more."""
        self._queue.close(grace_s)

    def watch(self, metrics: Metrics) -> None:
        """Have the model's figures among those of a service."""
        drift = self._drift
        self._metrics = metrics.of_model(
            self.name, lambda: self.waiting_tokens, None if drift is None else lambda: drift.value
        )

    def _shed(self, load: float) -> OperatingPoint | None:
        point = self._shedding.point_at(load)
        if self._metrics is not None:
            self._metrics.shed(load, point)
        return point

    def _waited(self, seconds: float) -> None:
        if self._metrics is not None:
            self._metrics.waited(seconds)

    def _run(self, point: OperatingPoint | None, rows: list[TokenRow]) -> list[RowResult]:
        chain, timing = self.pipeline.chain, Timing()
        results = (chain if point is None else chain.at(point)).run(rows, timing)
        if self._metrics is not None:
            self._metrics.ran(rows, results, timing)
        if self._drift is not None and point is None:
            pairs = zip(rows, results, strict=True)
            self._drift.see([kept_share(*pair) for pair in pairs if pair[0].exit_rule is None])
        return results


def _calibration(pipeline: Pipeline) -> list[float]:
    """Survivors' shares of the bundle's sample texts; none where it has none, or drops nothing."""
    samples = pipeline.require_bundle().samples() if pipeline.reduction.cuts else []
    if not samples:
        return []
    rows = [part for row in pipeline.ask(samples).rows for part in row.parts]
    return list(map(kept_share, rows, pipeline.chain.run(rows)))


class ServedModels:
    """The models of a service.

    Args:
        models: at least one.

    Raises:
        ConfigError: two of them have the same name.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.name: model for model in models}
        if len(self._models) < len(models):
            raise ConfigError(
                f"two models have one name, among {', '.join(each.name for each in models)}: give "
                "NAME=BUNDLE for one of them"
            )

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Of all models, in order."""
        return tuple(self._models)

    def put(self, model: ServedModel) -> None:
        """Have a model in the place of the one of its name."""
        self._models[model.name] = model

    def named(self, name: str) -> ServedModel:
        """The model of exactly this name.

        Raises:
            UnknownModel: there is none.
        """
        if name not in self._models:
            raise UnknownModel(f"there is no model {name!r}: expected {_any_of(self.names)}")
        return self._models[name]

    def find(self, name: str | None, *kinds: type[Task]) -> ServedModel:
        """The model that answers a request.

        Args:
            name: that the request gives. Of a single model it is not looked at: clients of other
                services send the names that these know.
            kinds: tasks of which its task must be one; any where there are none.

        Raises:
            UnknownModel: there is none of this name.
            ConfigError: it is for another task; or none is named, and several could be meant.
        """
        if len(self._models) == 1:
            (model,) = self._models.values()
        elif name is None:
            model = self._only(kinds)
        else:
            model = self.named(name)
        task = model.pipeline.task
        if kinds and not isinstance(task, kinds):
            raise ConfigError(f"the model is for {task.name}: ask the route of that task")
        return model

    def _only(self, kinds: tuple[type[Task], ...]) -> ServedModel:
        """The only model for one of these tasks."""
        fitting = [
            name
            for name, model in self._models.items()
            if not kinds or isinstance(model.pipeline.task, kinds)
        ]
        if len(fitting) != 1:
            what = " or ".join(dict.fromkeys(kind.name for kind in kinds)) or "this"
            raise ConfigError(
                f"{len(fitting)} models here are for {what}: give model, which is "
                f"{_any_of(fitting or self.names)}"
            )
        return self._models[fitting[0]]

    async def close(self, grace_s: float) -> None:
        """Answer what waits, and take no more."""
        ends = [asyncio.to_thread(model.close, grace_s) for model in self._models.values()]
        await asyncio.gather(*ends)


def _any_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
