"""Takes over bundles that were replaced on disk, without a request that is dropped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from trbert_deploy.bundle.manifest import DIGEST, MANIFEST
from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.files import read_json
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.serving.flights import Flights
from trbert_deploy.serving.logs import LOGGER
from trbert_deploy.serving.metrics import Metrics
from trbert_deploy.serving.served import ServedModel, ServedModels

log = logging.getLogger(LOGGER)
#: Seconds between two looks at the bundles.
WATCH_SECONDS = 1.0
#: Most seconds between two tries of a bundle that is refused.
MOST_PAUSE = 60.0


class Takeover:
    """Replaces models of a service by what stands in their place on disk.

    A bundle that does not load, or answers something else than the old one did, is not taken: the
    old model goes on, and the log says why.

    Args:
        models: of the service.
        load: opens a bundle as the service was told to.
        metrics: that new models are to be among.
        flights: requests under way.
    """

    def __init__(
        self,
        models: ServedModels,
        load: Callable[[Path], Pipeline],
        metrics: Metrics,
        flights: Flights,
    ) -> None:
        self._models = models
        self._load = load
        self._metrics = metrics
        self._flights = flights
        self._lock = asyncio.Lock()

    async def take_over(self) -> None:
        """Take over every bundle that is another one than before."""
        async with self._lock:
            for model in list(self._models):
                await self._take_over(model)

    async def watch(self) -> None:
        """Take over bundles as they are replaced, until cancelled.

        One that is refused is tried again, ever less often: its files may not all be there yet.
        """
        pauses: dict[str, tuple[float, float]] = {}  # name -> until when, and how long the next is
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            async with self._lock:
                for model in list(self._models):
                    until, pause = pauses.get(model.name, (0.0, WATCH_SECONDS))
                    if time.monotonic() < until or not await asyncio.to_thread(_is_other, model):
                        continue
                    if await self._take_over(model):
                        pauses.pop(model.name, None)
                    else:
                        pauses[model.name] = (time.monotonic() + pause, min(2 * pause, MOST_PAUSE))

    async def _take_over(self, old: ServedModel) -> bool:
        """Take over a model's bundle if it is another one; False if it is refused."""
        try:
            new = await asyncio.to_thread(self._replacement, old)
        except TrbertError as problem:
            log.error("model %s stays as it was: %s", old.name, problem)
            return False
        if new is not None:
            new.watch(self._metrics)
            self._models.put(new)
            log.info("model %s: the bundle that replaced it answers now", new.name)
            await self._flights.landed()  # those that hold the old one
            await asyncio.to_thread(old.close, 0.0)
        return True

    def _replacement(self, old: ServedModel) -> ServedModel | None:
        """The model that stands in a model's place now; None where it is the same.

        Raises:
            TrbertError: it cannot be loaded, or answers something else.
        """
        pipeline = self._load(old.pipeline.path)
        if pipeline.require_bundle().digest == old.pipeline.require_bundle().digest:
            return None
        for what, before, now in (
            ("another task", old.pipeline.task.name, pipeline.task.name),
            ("other labels", old.pipeline.labels, pipeline.labels),
        ):
            if before != now:
                raise ConfigError(
                    f"{pipeline.path} has {what} than the bundle that it replaced: start the "
                    "service again to serve it"
                )
        return ServedModel(pipeline, old.limits, old.name, log.info)


def _is_other(model: ServedModel) -> bool:
    """Whether another bundle stands in a model's place; not while there is none."""
    try:
        found = read_json(model.pipeline.path / MANIFEST).get(DIGEST)
    except TrbertError:
        return False
    return found != model.pipeline.require_bundle().digest
