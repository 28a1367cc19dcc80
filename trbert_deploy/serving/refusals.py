"""Why a service does not answer a request that is right in itself."""

from __future__ import annotations

from typing import ClassVar

from trbert_deploy.errors import TrbertError


class Refusal(TrbertError):
    """A request that is not answered now, and may be later.

    Attributes:
        status: of the HTTP answer.
        retry_after_s: when to ask again; None where another try is of no use.
    """

    status: ClassVar[int]

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Refusal):
    """As much is waiting as may wait."""

    status = 429


class DeadlinePassed(Refusal):
    """Its rows were not run in time."""

    status = 503


class ShuttingDown(Refusal):
    """The service ends, and takes no more."""

    status = 503
