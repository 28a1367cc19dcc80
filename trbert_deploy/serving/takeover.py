"""Takes over bundles that were replaced on disk, without a request that is dropped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from trbert_deploy.bundle.manifest import MANIFEST
from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.serving.flights import Flights
from trbert_deploy.serving.metrics import Metrics
from trbert_deploy.serving.served import ServedModel, ServedModels

log = logging.getLogger("trbert_deploy.serving")
#: Seconds between two looks at the bundles.
WATCH_SECONDS = 1.0


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
        self._seen = {model.name: _look(model) for model in models}
        self._lock = asyncio.Lock()

    async def take_over(self) -> None:
        """Take over every bundle that is another one than before."""
        async with self._lock:
            for model in list(self._models):
                await self._take_over(model)

    async def watch(self) -> None:
        """Take over bundles as they are replaced, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            looks = {model.name: _look(model) for model in self._models}
            changed = [name for name, look in looks.items() if look != self._seen[name]]
            if changed:
                await self.take_over()
                self._seen.update((name, looks[name]) for name in changed)

    async def _take_over(self, old: ServedModel) -> None:
        try:
            new = await asyncio.to_thread(self._replacement, old)
        except TrbertError as problem:
            log.error("model %s stays as it was: %s", old.name, problem)
            return
        if new is None:
            return
        new.watch(self._metrics)
        self._models.put(new)
        log.info("model %s: the bundle that replaced it answers now", new.name)
        await self._flights.landed()  # those that hold the old one
        await asyncio.to_thread(old.close, 0.0)

    def _replacement(self, old: ServedModel) -> ServedModel | None:
        """The model that stands in a model's place now; None where it is the same.

        Raises:
            TrbertError: it cannot be loaded, or answers something else.
        """
        pipeline = self._load(old.pipeline.path)
        if pipeline.require_bundle().digest == old.pipeline.require_bundle().digest:
            return None
        for what, before, now in (
            ("task", old.pipeline.task.name, pipeline.task.name),
            ("labels", old.pipeline.labels, pipeline.labels),
        ):
            if before != now:
                raise ConfigError(
                    f"{pipeline.path} has other {what} than the bundle it replaced: start the "
                    "service again to serve it"
                )
        return ServedModel(pipeline, old.limits, old.name)


def _look(model: ServedModel) -> tuple[int, int] | None:
    """Tells one state of a model's bundle from another; None while it is gone."""
    try:
        found = (model.pipeline.path / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
