"""What a note says of the rows that were measured."""

from __future__ import annotations

from trbert_deploy.bundle.bundle import Bundle


def of_which_rows(bundle: Bundle) -> str:
    """Stands behind what was measured: that there were no texts to do it with, or nothing.

    Policies drop more of random tokens, or fewer, than of text.
    """
    if bundle.samples():
        return ""
    return "; measured on random tokens, for the bundle has no sample texts"
