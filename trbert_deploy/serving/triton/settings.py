"""How the server is to run a model: what its config.pbtxt says, and its parameters there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trbert_deploy.bounds import MOST_TEXTS, MOST_THREADS, require_whole
from trbert_deploy.errors import ConfigError
from trbert_deploy.fields import known_fields
from trbert_deploy.runtime.backends.registry import (
    AUTO,
    BACKENDS,
    DEFAULT_BACKEND,
    require_precision,
)
from trbert_deploy.selection.operating_point import OperatingPoint

#: Instances of a model on each device.
MOST_INSTANCES = 1024
#: A second: longer than anybody waits for company.
MOST_DELAY_US = 1_000_000


@dataclass(frozen=True)
class Loading:
    """What a model is loaded with, by the names and with the meanings of ``load``.

    Raises:
        ConfigError: an unknown backend, or one that cannot compute so; a number out of range.
    """

    backend: str = DEFAULT_BACKEND
    precision: str | None = None
    threads: int = 0
    threshold: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.backend not in (*BACKENDS, AUTO):
            raise ConfigError(
                f"unknown backend {self.backend!r}: expected one of {', '.join(BACKENDS)}, {AUTO}"
            )
        require_precision(self.backend, self.precision)
        require_whole("threads", self.threads, 0, MOST_THREADS)
        OperatingPoint(self.threshold)

    def to_parameters(self) -> dict[str, str]:
        """As strings, which is all that config.pbtxt holds; without what is None."""
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in asdict(self).items()
            if value is not None
        }

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Loading:
        """What the parameters of a model say.

        Args:
            parameters: name -> value. Names in capitals are the server's own.

        Raises:
            ConfigError: an unknown name, or a value of another kind or out of range.
        """
        told = {name: _read(value) for name, value in parameters.items() if not name.isupper()}
        return cls(**known_fields(cls, told, "the model's configuration", defaults=True))


def _read(value: str) -> Any:
    """A parameter: a number, true or false, or else a name."""
    try:
        return json.loads(value)
    except ValueError:
        return value


@dataclass(frozen=True)
class Settings:
    """How the server runs a model.

    Attributes:
        loading: what it is loaded with.
        instances: of the model on each device, each with its own weights in memory.
        max_batch_size: most texts of a request, and of the requests that run together.
        queue_delay_us: microseconds that a request waits for others while an instance is idle.

    Raises:
        ConfigError: a number out of range.
    """

    loading: Loading = field(default_factory=Loading)
    instances: int = 1
    max_batch_size: int = 64
    queue_delay_us: int = 0

    def __post_init__(self) -> None:
        require_whole("instances", self.instances, 1, MOST_INSTANCES)
        require_whole("max_batch_size", self.max_batch_size, 1, MOST_TEXTS)
        require_whole("queue_delay_us", self.queue_delay_us, 0, MOST_DELAY_US)
