"""A service's log: one line for each request, plain or as JSON. No text of a user is in it."""

from __future__ import annotations

import json
import logging
import re
import uuid
from typing import Any

#: Name of a service's own log.
LOGGER = "trbert_deploy.serving"
#: What may be the id of a request that a client or a proxy gives.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
#: Of a record: values that are fields of its line of JSON.
FIELDS = "fields"


class JsonLines(logging.Formatter):
    """Records as JSON objects, a line each."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def set_up(as_json: bool) -> None:
    """Write the log of this process to standard error."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(levelname)-5s %(message)s")
    handler.setFormatter(JsonLines() if as_json else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def request_id(given: str | None) -> str:
    """The id of a request: what it brings, or else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
