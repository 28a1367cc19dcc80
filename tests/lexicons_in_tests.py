"""A bundle that takes a lexicon, for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trbert_deploy.exporters.export import export_bundle


def lexicon_bundle(
    make_checkpoint: Callable[..., Path], place: Path, labels: tuple[str, ...]
) -> Path:
    """The bundle of a tagger that hears a lexicon, and has none yet, at ``place``."""
    answers = {"takes_lexicon": True}
    checkpoint = make_checkpoint(task="token-classification", labels=labels, answers=answers)
    export_bundle(checkpoint, place)
    return place
