"""Draws how alike the places of two texts are, and which of them belong together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, get_font_names

from trbert_deploy.alignment.aligner import Alignment
from trbert_deploy.alignment.places import Place
from trbert_deploy.errors import printable
from trbert_deploy.reports.plots.figure import write_figure

#: Places that are named on a side; of more, only their numbers are told.
MOST_NAMED = 60
#: Most letters of a name.
_LONGEST_NAME = 16
#: Inches of a place, and of a figure's side.
_CELL, _LEAST, _MOST = 0.26, 3.0, 14.0
_LINK = "#d55e00"
#: Families that cover many scripts; those that are installed are asked for what the first lacks.
_FAMILIES = ("Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Arial Unicode MS", "Unifont")


def write_alignment_plot(alignment: Alignment, path: Path) -> None:
    """Write ``draw_alignment`` to ``path`` as PNG, whole or not at all.

    Letters of scripts that no installed font has are boxes, of which nobody is warned.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        write_figure(draw_alignment(alignment), path)


def draw_alignment(alignment: Alignment) -> Figure:
    """Similarities in grey, the first text from top to bottom, with a mark on each link."""
    rows, columns = alignment.similarity.shape
    width, height = (float(np.clip(_CELL * n + 1.6, _LEAST, _MOST)) for n in (columns, rows))
    figure = Figure(figsize=(width + 0.6, height), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(alignment.similarity, cmap="Greys", aspect="auto", interpolation="nearest")
    linked = np.argwhere(alignment.links)
    size = 5.0 if max(rows, columns) <= MOST_NAMED else 1.5
    axes.plot(linked[:, 1], linked[:, 0], "s", color=_LINK, markersize=size, markerfacecolor="none")
    font = FontProperties(family=list(_families()), size=8.0)
    if rows <= MOST_NAMED:
        names = _names(alignment.source)
        axes.set_yticks(range(rows), names, parse_math=False, fontproperties=font)
    if columns <= MOST_NAMED:
        names = _names(alignment.target)
        axes.set_xticks(range(columns), names, parse_math=False, fontproperties=font, rotation=90)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="cosine", fraction=0.04)
    return figure


def _names(places: Sequence[Place]) -> list[str]:
    names = [printable(place.text) for place in places]
    return [
        name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names
    ]


@cache
def _families() -> tuple[str, ...]:
    installed = {*get_font_names()}
    return ("DejaVu Sans", *(family for family in _FAMILIES if family in installed))
