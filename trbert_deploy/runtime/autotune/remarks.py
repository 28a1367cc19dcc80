"""What a note says of the rows that were measured."""

from __future__ import annotations

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.runtime.samples import are_random


def of_which_rows(bundle: Bundle) -> str:
    """Stands behind what was measured: that there were no texts to do it with, or nothing."""
    if are_random(bundle):
        return "; measured on random tokens, for the bundle has no sample texts"
    return ""
