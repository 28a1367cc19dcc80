"""Figures show the figures they are given, and are written as whole PNG files."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import make_texts
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from trbert_deploy.errors import DataError
from trbert_deploy.evaluation.kept import (
    KeptText,
    Piece,
    WordShare,
    kept_by_length,
    trace_texts,
)
from trbert_deploy.files import write_json_lines
from trbert_deploy.reports.plots.figure import write_figure
from trbert_deploy.reports.plots.kept import (
    cut_name,
    draw_kept_by_length,
    draw_texts,
    draw_words,
)
from trbert_deploy.runtime.loading import load
from trbert_deploy.tasks.examples import Example

ROOT = Path(__file__).parents[3]
CUTS = (0.5, 3.0)
SHARES = [
    WordShare("great", (50, 50, 48), (0.99, 0.95)),
    WordShare("the", (90, 9, 1), (0.12, 0.18)),
    WordShare("$", (20, 10, 5), (0.5, 0.5)),
    WordShare("film", (40, 20, 2), (0.49, 0.2)),
]


def kept_text(sentence: str, passed: list[int], part: int = 0) -> KeptText:
    """A sentence whose words survived so many cuts, one number each."""
    words, start = [], 0
    for word, fate in zip(sentence.split(" "), passed, strict=True):
        words.append(Piece(word, start, start + len(word), part, fate))
        start += len(word) + 1
    return KeptText(sentence, "bad", "good", tuple(words), tuple(words), (len(words), 2, 1))


def words_in(figure: Figure) -> dict[str, list[Text]]:
    found: dict[str, list[Text]] = {}
    for text in figure.texts:
        found.setdefault(text.get_text(), []).append(text)
    return found


def boxes(figure: Figure) -> list[tuple[str, float, float, float]]:
    """Every text of a drawn figure with its left, right and base, in inches."""
    figure.set_dpi(150)
    figure.draw_without_rendering()
    found = []
    for text in figure.texts:
        box = text.get_window_extent()
        base = figure.transFigure.transform(text.get_position())[1]
        found.append((text.get_text(), box.x0 / 150, box.x1 / 150, base / 150))
    return found


def test_cuts_have_names() -> None:
    assert cut_name(3.0) == "before layer 3"
    assert cut_name(0.5) == "inside layer 0"


def test_lines_show_the_kept_share_of_every_bin() -> None:
    bins = kept_by_length(np.array([[10, 5, 1], [12, 6, 3], [100, 20, 10], [90, 18, 9]]), 2)
    (axes,) = draw_kept_by_length(bins, CUTS).axes
    first, second = axes.lines
    assert list(first.get_xdata()) == [11.0, 95.0]
    assert list(first.get_ydata()) == pytest.approx([0.5, 0.2])
    assert list(second.get_ydata()) == pytest.approx([0.175, 0.1])
    assert [line.get_label() for line in axes.lines] == ["inside layer 0", "before layer 3"]
    assert first.get_color() != second.get_color()
    spread = axes.collections[1].get_paths()[0].get_extents()
    assert (spread.y0, spread.y1) == pytest.approx((0.1, max(bins[0].high[1], 0.1)))


def test_bars_rank_words_for_each_cut() -> None:
    figure = draw_words(SHARES, CUTS, count=2)
    shown = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert shown == [["great", "$"], ["the", "film"], ["great", "$"], ["the", "film"]]
    most = figure.axes[2]
    widths = [bar.get_width() for bar in most.patches]
    assert widths == [1.0, 1.0, 0.95, 0.5]
    assert [text.get_text() for text in most.texts] == ["48 of 50", "5 of 10"]
    assert most.get_title(loc="left") == "kept most, cut before layer 3"


def test_few_words_stand_on_one_side_only() -> None:
    figure = draw_words(SHARES[:3], CUTS[:1])
    assert [len(axes.texts) for axes in figure.axes] == [1, 1]
    with pytest.raises(DataError, match="no word is frequent enough"):
        draw_words([], CUTS)


def test_words_have_the_colour_of_their_cut() -> None:
    figure = draw_texts([kept_text("one two three $2 and $3", [0, 1, 2, 0, 0, 0])], CUTS)
    found = words_in(figure)
    legend = ["left inside layer 0", "left before layer 3", "reached the head"]
    styles = [
        (found[word][0].get_color(), found[word][0].get_weight())
        for word in (*legend, "one", "two", "three")
    ]
    assert styles[:3] == styles[3:]
    assert len(set(styles)) == 3 and styles[2] == ("#000000", "bold")
    assert found["$2"][0].get_color() == styles[0][0]
    assert "label bad, answer good; tokens 6 → 2 → 1" in found
    greys = [int(color[1:3], 16) * 0.3 + int(color[3:5], 16) * 0.59 for color, _ in styles[:3]]
    assert greys == sorted(greys, reverse=True), "later is darker, in a grey print too"


def test_words_stand_in_lines_without_overlap() -> None:
    sentence = " ".join(row["text"] for row in make_texts(4))
    fates = [place % 3 for place, _ in enumerate(sentence.split(" "))]
    figure = draw_texts([kept_text(sentence, fates)], CUTS)
    placed = boxes(figure)[4:]  # behind legend and heading
    assert " ".join(word for word, *_ in placed) == sentence
    lines = sorted({base for *_, base in placed}, reverse=True)
    assert len(lines) > 2
    width = figure.get_figwidth()
    for base in lines:
        members = [(left, right) for _, left, right, at in placed if at == base]
        assert members == sorted(members)
        for (_, right), (left, _) in pairwise(members):
            assert right < left
        assert members[0][0] > 0.3 and members[-1][1] < width - 0.3
    assert lines[-1] > 0.2 and lines[0] < figure.get_figheight() - 0.2


def test_what_has_no_space_between_stays_together_unless_it_is_too_long() -> None:
    pieces, start = [], 0
    for word in ["don", "'", "t", *["endless"] * 30]:
        gap = 1 if word == "endless" and start == 5 else 0
        pieces.append(Piece(word, start + gap, start + gap + len(word), 0, 0))
        start += gap + len(word)
    text = KeptText("", None, "good", tuple(pieces), tuple(pieces), (33, 0, 0))
    figure = draw_texts([text], CUTS)
    heading, *placed = boxes(figure)[3:]
    assert heading[0].startswith("answer good;")
    assert len({base for *_, base in placed[:3]}) == 1
    assert len({base for *_, base in placed}) > 2
    assert max(right for _, _, right, _ in placed) < figure.get_figwidth() - 0.3


def test_the_second_text_of_a_pair_begins_a_line() -> None:
    words = (Piece("one", 0, 3, 0, 0), Piece("two", 0, 3, 1, 0))
    pair = KeptText(("one", "two"), None, "good", words, words, (5, 1, 1))
    *_, (_, _, _, first), (_, _, _, second) = boxes(draw_texts([pair], CUTS))
    assert second < first


def test_any_number_of_cuts_and_texts_can_be_drawn() -> None:
    assert len(draw_texts([], CUTS).texts) == 3
    for cuts in ((1.0,), (1.0, 2.0, 3.0, 4.5)):
        survived = [0, len(cuts)]
        assert len(draw_texts([kept_text("one two", survived)], cuts).texts) == len(cuts) + 4


def test_pictures_are_written_whole(tmp_path: Path, tiny_bundle: Path) -> None:
    pipeline = load(tiny_bundle, threads=1)
    texts = trace_texts(pipeline, [Example(row["text"], row["label"]) for row in make_texts(3)])
    path = tmp_path / "new" / "texts.png"
    write_figure(draw_texts(texts, [1.0, 2.0]), path)
    assert [each.name for each in path.parent.iterdir()] == ["texts.png"]
    pixels = imread(path)
    assert pixels.ndim == 3 and 1000 < pixels.shape[1] < 2000 and 300 < pixels.shape[0] < 3000
    assert pixels[..., :3].min() == 0.0 and pixels[..., :3].mean() > 0.8


def test_the_script_draws_all_three(tmp_path: Path, tiny_bundle: Path) -> None:
    data = tmp_path / "texts.jsonl"
    write_json_lines(data, make_texts(40, seed=3))
    script = ROOT / "benchmarks" / "quality" / "pictures.py"
    command = [sys.executable, "-W", "error", script, tiny_bundle, "--data", data, "--threads", "1"]
    done = subprocess.run(
        [*command, "--output", tmp_path / "out", "--texts", "30", "--least-texts", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("kept_by_length.png", "words.png", "texts.png"):
        height, width, _ = imread(tmp_path / "out" / name).shape
        assert 300 < height < 3000 and 900 < width < 2000
    done = subprocess.run(
        [*command, "--output", tmp_path / "none", "--least-texts", "99"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "error: no word is frequent enough" in done.stderr
