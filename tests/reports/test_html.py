"""The page of a benchmark: what it says, that it needs nothing else, that a phone can show it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from conftest import make_texts

from trbert_deploy.bench.bundles import BenchOptions, bench_bundle, trace_bundle
from trbert_deploy.bench.timing import BackendBench, BenchReport, Rounds
from trbert_deploy.bench.tradeoff import measure_tradeoff
from trbert_deploy.cli import main
from trbert_deploy.evaluation.kept import KeptText, Piece
from trbert_deploy.files import write_json_lines
from trbert_deploy.reports.html import draw_kept, draw_latency, draw_time, fragments, render
from trbert_deploy.runtime.loading import load
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.examples import Example

QUICK = BenchOptions(lengths=(16, 48), batches=(1, 2), rounds=Rounds.exactly(2), threads=1)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def report(tiny_bundle: Path) -> BenchReport:
    return bench_bundle(tiny_bundle, QUICK)


@pytest.fixture(scope="module")
def texts(tiny_bundle: Path) -> list[KeptText]:
    return trace_bundle(tiny_bundle, QUICK)


@pytest.fixture(scope="module")
def page(report: BenchReport, texts: list[KeptText]) -> str:
    return render(report, texts)


def shown(page: str) -> str:
    """The words of a page."""
    body = page[page.index("<body>") :]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def test_every_figure_of_the_table_is_there(report: BenchReport, page: str) -> None:
    words = shown(page)
    (bench,) = report.backends
    for point in bench.points:
        assert f"{point.length} tokens batch {point.batch}" in words
        for timing in (point.dense, point.reduced):
            assert f"{timing.p50_ms:.2f}" in words and f"{timing.outside_share:.1%}" in words
        assert f"{point.measured_speedup:.2f}" in words
    assert str(report.machine["processor"]) in words
    assert "tokens are dropped before layer 1, before layer 2" in words


def test_it_needs_nothing_else(page: str) -> None:
    assert not re.search(r"<script|<link|<img|@import|src=", page)
    references = re.findall(r"(?:href=\"|url\()([^\")]*)", page)
    assert references and all(reference.startswith("#") for reference in references)
    ids = re.findall(r"\bid=\"([^\"]*)\"", page)
    drawn = [name for name in ids if any(f"#{name}" in used for used in references)]
    assert len(drawn) == len(set(drawn))  # no plot draws with another's parts


def test_it_is_the_same_again(report: BenchReport, texts: list[KeptText], page: str) -> None:
    assert render(report, texts) == page


def test_texts_are_shown_whole_and_harmless() -> None:
    source = "a <b>film</b> & more  "
    words = [Piece("a", 0, 1, 0, 2), Piece("film", 5, 9, 0, 1), Piece("more", 16, 20, 0, 0)]
    tokens = (Piece("[CLS]", 0, 0, None, 2), *words)
    text = KeptText(source, "bad", "good", tokens, tuple(words), (4, 3, 2))
    (parts,) = fragments(text)
    assert "".join(part.text for part in parts) == source
    fates = {part.text.strip(): part.passed for part in parts}
    assert (fates["a"], fates["film"], fates["more"]) == (2, 1, 0)


def test_every_character_of_real_texts_is_shown(texts: list[KeptText], page: str) -> None:
    for text in texts:
        assert "".join(part.text for parts in fragments(text) for part in parts) == text.text
        assert {part.passed for part in fragments(text)[0]} <= {0, 1, 2}
    assert shown(page).count("answer ") == 6


def test_markup_in_a_text_stays_text(report: BenchReport, texts: list[KeptText]) -> None:
    text = "<script>alert(1)</script>"
    piece = Piece(text, 0, len(text), 0, 2)
    changed = replace(texts[0], text=text, tokens=(piece,), answer="<i>good")
    page = render(report, [changed])
    assert "<script" not in page and "<i>" not in page
    assert text in shown(page)


def test_a_model_without_cuts_has_no_texts(report: BenchReport) -> None:
    described = {**report.bundle, "cuts": []}
    (bench,) = report.backends
    points = tuple(replace(point, kept=()) for point in bench.points)
    uncut = (BackendBench(bench.description, points),)
    words = shown(render(replace(report, bundle=described, backends=uncut), []))
    assert "no cuts" in words and "What is kept" not in words


def test_the_drawings_show_the_figures(report: BenchReport, texts: list[KeptText]) -> None:
    (bench,) = report.backends
    (axes,) = draw_latency(bench).axes
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert list(lines) == [
        f"{model}, batch {batch}" for batch in (1, 2) for model in ("dense", "reduced")
    ]
    expected = [point.reduced.p50_ms for point in bench.points if point.batch == 2]
    assert list(lines["reduced, batch 2"]) == expected
    (axes,) = draw_time(bench).axes
    widths = sum(patch.get_width() for patch in axes.patches)
    calls = [timing for point in bench.points for timing in (point.dense, point.reduced)]
    assert widths == pytest.approx(
        sum(sum(timing.graph_ms.values()) + timing.outside_ms for timing in calls)
    )
    panels = draw_kept(texts, (1.0, 2.0)).axes
    assert [panel.get_title(loc="left").partition(":")[0] for panel in panels] == [
        "whole texts", "behind the cut before layer 1", "behind the cut before layer 2",
    ]  # fmt: skip
    for panel in panels:
        assert sum(patch.get_height() for patch in panel.patches) == len(texts)


def test_the_operating_point_is_that_of_the_benchmark(tiny_bundle: Path) -> None:
    options = replace(QUICK, point=OperatingPoint(max_tokens=3))
    assert {text.lengths[1:] for text in trace_bundle(tiny_bundle, options)} == {(3, 3)}
    (bench,) = bench_bundle(tiny_bundle, options).backends
    assert {point.kept for point in bench.points} == {(3.0, 3.0)}


def test_the_command_writes_the_page(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data, target = tmp_path / "texts.jsonl", tmp_path / "page.html"
    write_json_lines(data, [{"text": row["text"]} for row in make_texts(3, seed=8)])
    arguments = ["--lengths", "16", "--rounds", "1", "--data", str(data), "--html", str(target)]
    monkeypatch.setattr("sys.argv", ["trbert-deploy", "bench", str(tiny_bundle), *arguments])
    main()
    assert "page: " in capfd.readouterr().out
    words = shown(target.read_text())
    assert "Tokens of 3 texts" in words and words.count("answer ") == 3


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize(("width", "swept"), [(390, False), (390, True), (1200, False)])
def test_a_browser_shows_it_without_scrolling_sideways(
    report: BenchReport,
    texts: list[KeptText],
    page: str,
    tiny_bundle: Path,
    tmp_path: Path,
    width: int,
    swept: bool,
) -> None:
    if swept:
        rows = [Example(row["text"], row["label"]) for row in make_texts(4)]
        page = render(report, texts, measure_tradeoff(load(tiny_bundle, threads=1), rows))
    tells = (
        "<script>addEventListener('load', () => { const root = document.documentElement;"
        "parent.postMessage([root.scrollWidth, innerWidth, document.querySelectorAll('svg').length,"
        "performance.getEntriesByType('resource').length].join(' '), '*') })</script></body>"
    )
    (tmp_path / "page.html").write_text(page.replace("</body>", tells))
    frame = tmp_path / "frame.html"  # since a window of its own may not be as narrow as a phone
    frame.write_text(
        "<script>addEventListener('message', event => { document.title = event.data })</script>"
        f"<iframe src='page.html' width={width} height=800 frameborder=0></iframe>"
    )
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,900",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--dump-dom",
        frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>([\d ]+)</title>", done.stdout)
    assert title, done.stdout[:500]
    needed, given, drawings, loaded = map(int, title[1].split())
    assert needed <= given == width
    assert (drawings, loaded) == (4 if swept else 3, 0)
