"""Writes matplotlib figures."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from trbert_deploy.files import staged_file

DPI = 150


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure to ``path`` as PNG, whole or not at all."""
    with staged_file(path) as staging:
        figure.savefig(staging, format="png", dpi=DPI)
