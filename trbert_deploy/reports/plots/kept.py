"""Draws what the chain keeps (kept.py): by length of the text, by word, and in the text itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import LogLocator, PercentFormatter, ScalarFormatter

from trbert_deploy.errors import DataError
from trbert_deploy.evaluation.kept import KeptText, LengthBin, Piece, WordShare
from trbert_deploy.reports.plots.figure import DPI

#: Told apart with any colour vision (Okabe and Ito 2008), one per cut.
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
#: Words that left, from the first cut to the last: lightness falls too, so that a grey print
#: shows the order. Survivors are black and bold.
_FADED = LinearSegmentedColormap.from_list("faded", ["#9c9c9c", "#b34700"])
_SURVIVOR = "#000000"
_BAR, _REST = "#0072b2", "#d9d9d9"

_MARGIN = 0.35  # inches, as all lengths below
_TEXT_WIDTH = 8.0
_LINE_HEIGHT = 0.235
_SPACE = 0.055
_FONT_SIZE = 10.5  # points


def cut_name(position: float) -> str:
    """A cut in words, such as ``before layer 3`` or ``inside layer 0``."""
    return f"{'inside' if position % 1 else 'before'} layer {int(position)}"


def draw_kept_by_length(bins: Sequence[LengthBin], cuts: Sequence[float]) -> Figure:
    """Share of the tokens left behind each cut against the length of the text.

    Args:
        bins: from ``kept_by_length``.
        cuts: positions of the cuts, in layers.
    """
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    lengths = [each.mean for each in bins]
    for index, cut in enumerate(cuts):
        color = _LINES[index % len(_LINES)]
        low, high = ([each.low[index] for each in bins], [each.high[index] for each in bins])
        kept = [each.kept[index] for each in bins]
        axes.fill_between(lengths, low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(lengths, kept, color=color, marker="o", markersize=4, label=cut_name(cut))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(2, subs=(1.0, 1.5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("tokens of the text, special tokens included")
    axes.set_ylabel("share of the tokens left")
    axes.legend(title="behind the cut", frameon=False)
    texts = sum(each.texts for each in bins)
    figure.suptitle(
        f"Tokens left by length of the text\n{texts} texts in {len(bins)} groups: "
        "median, and the middle 80 % of the texts",
        fontsize="medium",
    )
    return figure


def draw_words(shares: Sequence[WordShare], cuts: Sequence[float], count: int = 20) -> Figure:
    """The words that each cut keeps most and least, as horizontal bars.

    Args:
        shares: from ``word_shares``.
        cuts: positions of the cuts, in layers.
        count: words of each kind; fewer where there are not twice as many.

    Raises:
        DataError: no words.
    """
    if not shares:
        raise DataError("no word is frequent enough to draw: expected more texts")
    count = min(count, max(len(shares) // 2, 1))
    rows = len(cuts)
    figure = Figure(figsize=(8.5, rows * (0.19 * count + 0.9) + 0.6), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False, sharex=True)
    for index, (cut, (most, least)) in enumerate(zip(cuts, panels, strict=True)):
        ranked = sorted(shares, key=lambda share: share.kept[index])
        _draw_bars(most, ranked[::-1][:count], index, f"kept most, cut {cut_name(cut)}")
        _draw_bars(least, ranked[:count], index, f"kept least, cut {cut_name(cut)}")
    figure.suptitle(
        "Words by the share of their occurrences that survives, of those that reach the cut\n"
        "bars: smoothed estimate; figures: kept of reached",
        fontsize="medium",
    )
    return figure


def _draw_bars(axes: Axes, shares: Sequence[WordShare], cut: int, title: str) -> None:
    places = range(len(shares))
    kept = [share.kept[cut] for share in shares]
    axes.barh(places, 1.0, color=_REST, height=0.72)
    axes.barh(places, kept, color=_BAR, height=0.72)
    for place, share in zip(places, shares, strict=True):
        axes.text(
            1.02, place, f"{share.reached[cut + 1]} of {share.reached[cut]}", va="center", size=7.5
        )
    axes.set_yticks(places, [share.word for share in shares], size=8.5, parse_math=False)
    axes.set_ylim(len(shares) - 0.4, -0.6)  # the first word on top
    axes.set_xlim(0.0, 1.2)
    axes.set_xticks([0.0, 0.5, 1.0])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize="small", loc="left")


@dataclass(frozen=True)
class _Style:
    color: str
    font: FontProperties


#: Lines of the legend over the texts.
_PREAMBLE = 2
_HEADING = _Style("#404040", FontProperties(size=8.5, style="italic"))


@dataclass(frozen=True)
class _Placed:
    """A word on its line; ``left`` in inches from the line's start."""

    word: Piece
    line: int
    left: float


def draw_texts(texts: Sequence[KeptText], cuts: Sequence[float]) -> Figure:
    """Texts with every word in the colour of the cut at which it left; survivors black and bold.

    Args:
        texts: from ``trace_texts``, such as those that ``examples`` chooses.
        cuts: positions of the cuts, in layers.
    """
    styles = _styles(len(cuts))
    layouts = [list(_lay_out(text, styles)) for text in texts]
    # Per text a heading, its lines, and an empty line.
    heights = [layout[-1].line + 3 if layout else 2 for layout in layouts]
    width = _TEXT_WIDTH + 2 * _MARGIN
    height = (_PREAMBLE + sum(heights)) * _LINE_HEIGHT + _MARGIN
    figure = Figure(figsize=(width, height))

    def write(line: float, left: float, text: str, style: _Style) -> None:
        figure.text(
            (_MARGIN + left) / width,
            1.0 - (_MARGIN + line * _LINE_HEIGHT) / height,
            text,
            color=style.color,
            fontproperties=style.font,
            parse_math=False,  # a text may hold dollar signs
        )

    left = 0.0
    names = [f"left {cut_name(cut)}" for cut in cuts] + ["reached the head"]
    for name, style in zip(names, styles, strict=True):
        write(0.5, left, name, style)
        left += _width(name, style.font) + _LINE_HEIGHT
    line = float(_PREAMBLE)
    for text, layout, height_in_lines in zip(texts, layouts, heights, strict=True):
        write(line, 0.0, _heading(text), _HEADING)
        for placed in layout:
            style = styles[placed.word.passed]
            write(line + 1.1 + placed.line, placed.left, placed.word.text, style)
        line += height_in_lines
    return figure


def cut_colors(cuts: int) -> list[str]:
    """Colour of what left at cut 0, 1, ..., and last of what survived all of them: [C+1]."""
    steps = np.linspace(0.0, 1.0, cuts) if cuts > 1 else [0.0]
    return [*(to_hex(_FADED(float(step))) for step in steps), _SURVIVOR]


def _styles(cuts: int) -> list[_Style]:
    """How a word looks that left at cut 0, 1, ..., or survived all of them: [C+1]."""
    return [_Style(color, _font(bold=color == _SURVIVOR)) for color in cut_colors(cuts)]


def _font(bold: bool) -> FontProperties:
    return FontProperties(size=_FONT_SIZE, weight="bold" if bold else "normal")


def _heading(text: KeptText) -> str:
    label = "" if text.label is None else f"label {text.label}, "
    return f"{label}answer {text.answer}; tokens {' → '.join(map(str, text.lengths))}"


def _lay_out(text: KeptText, styles: Sequence[_Style]) -> Iterator[_Placed]:
    """Words on lines of ``_TEXT_WIDTH``, broken where the text has a space."""
    line, left = 0, 0.0
    part = text.words[0].part if text.words else None
    for run in _runs(text.words):
        widths = [_width(word.text, styles[word.passed].font) for word in run]
        if left and (left + sum(widths) > _TEXT_WIDTH or run[0].part != part):
            line, left = line + 1, 0.0  # the second text of a pair begins a line
        part = run[0].part
        for word, width in zip(run, widths, strict=True):
            if left and left + width > _TEXT_WIDTH:  # the run alone is longer than a line
                line, left = line + 1, 0.0
            yield _Placed(word, line, left)
            left += width
        left += _SPACE


def _runs(words: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Words that follow each other without a space, such as ``don``, ``'`` and ``t``."""
    run: list[Piece] = []
    for word in words:
        if run and (word.part, word.start) != (run[-1].part, run[-1].stop):
            yield run
            run = []
        run.append(word)
    if run:
        yield run


#: Measures words at the resolution that figures are written at: hinting changes widths.
_RULER = FigureCanvasAgg(Figure(dpi=DPI)).get_renderer()  # type: ignore[no-untyped-call]


def _width(text: str, font: FontProperties) -> float:
    """Width of a text in inches."""
    return _RULER.get_text_width_height_descent(text, font, ismath=False)[0] / DPI
