"""Why a service does not answer a request, beyond what the library refuses."""

from __future__ import annotations

from typing import ClassVar

from trbert_deploy.errors import TrbertError


class Refusal(TrbertError):
    """A request that is not answered.

    Attributes:
        status: of the HTTP answer.
        kind: of error, as text-embeddings-inference calls it.
        retry_after_s: when to ask again; None where another try is of no use.
    """

    status: ClassVar[int]
    kind: ClassVar[str]

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NothingAsked(Refusal):
    """A list of texts without a text."""

    status, kind = 400, "Empty"


class UnknownModel(Refusal):
    """A model that the service does not have."""

    status, kind = 404, "Validation"


class QueueFull(Refusal):
    """As much is waiting as may wait."""

    status, kind = 429, "Overloaded"


class DeadlinePassed(Refusal):
    """Its rows were not run in time."""

    status, kind = 503, "Unhealthy"


class ShuttingDown(Refusal):
    """The service ends, and takes no more."""

    status, kind = 503, "Unhealthy"
