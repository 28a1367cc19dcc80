"""Whole compressions of a tiny model, from the command line."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_texts, tiny_spec
from rich.console import Console
from training_in_tests import make_workplace, options_for, with_recipe

from trbert_deploy.bench.timing import BenchReport, Rounds
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import WEIGHTS
from trbert_deploy.cli import main
from trbert_deploy.compress import probe
from trbert_deploy.compress import run as run_module
from trbert_deploy.compress.forecast import rough_time
from trbert_deploy.compress.options import CompressOptions
from trbert_deploy.compress.run import compress
from trbert_deploy.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    TrbertError,
)
from trbert_deploy.evaluation.kept import KeptText
from trbert_deploy.evaluation.quality import QualityReport
from trbert_deploy.modeling.checkpoints.pipeline import load_checkpoint_pipeline
from trbert_deploy.progress import Progress
from trbert_deploy.reports.console.compress import print_compress
from trbert_deploy.reports.html import render
from trbert_deploy.runtime.loading import load
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.training.recipe import Recipe
from trbert_deploy.training.run import train

RECIPE = """
averaged_runs = 1
validations = 1
batch_tokens = 256
save_seconds = 0
[policy]
learning_rate = 1e-2
[joint]
policy_learning_rate = 1e-2
[hard]
epochs = 1
"""


EXITS_RECIPE = """
[exits]
epochs = 4
exit_learning_rate = 1e-2
max_drop = 100
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A fine-tuned teacher, its texts with and without labels, and a recipe of some seconds."""
    place = make_workplace(tmp_path_factory.mktemp("compress"), tokenizer_dir)
    train(with_recipe(options_for(place), stages=("teacher",)), place / "teacher")
    rows = make_texts(160, 9)
    lines = "".join(json.dumps({"text": row["text"]}) + "\n" for row in rows)
    (place / "texts.jsonl").write_text(lines)
    (place / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "recipe.toml").write_text(RECIPE)
    return place


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model as small as this one gains nothing: its speed-up counts all the same."""
    monkeypatch.setattr(probe, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(run_module, "ROUNDS", Rounds.exactly(2))  # no time is looked at


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run from the command line: its directory, with what it printed in out and err."""
    place = tmp_path_factory.mktemp("whole")
    code = (
        "from trbert_deploy.compress import probe, run; from trbert_deploy.bench.timing import "
        "Rounds; probe.LEAST_GAIN = 0.0; run.ROUNDS = Rounds.exactly(2); "
        "from trbert_deploy.cli import main; main()"
    )
    command = [sys.executable, "-c", code, *arguments(workplace)[1:], "--json", "out.json"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # for the same roundings as here
    done = subprocess.run(
        command, cwd=place, check=True, capture_output=True, text=True, env=os.environ | threads
    )
    (place / "out").write_text(done.stdout)
    (place / "err").write_text(done.stderr)
    return place


@pytest.fixture
def trained(whole: Path, here: Path) -> Path:
    """The working directory of a run whose training is done, and nothing behind it."""
    shutil.copytree(whole / "compress", here / "compress")
    path = here / "compress" / "compress.json"
    record = json.loads(path.read_text())
    for step in ("train", "export", "summary"):
        del record["steps"][step]
    path.write_text(json.dumps(record))
    return Path("compress")  # as it was called when the run began


def asked_for(work: Path, **gate: float) -> None:
    """Let the run have been begun with a gate."""
    path = work / "compress.json"
    record = json.loads(path.read_text())
    record["options"] |= gate
    path.write_text(json.dumps(record))


def arguments(workplace: Path, texts: str = "texts.jsonl", *more: str) -> list[str]:
    return [
        "trbert-deploy", "compress", str(workplace / "teacher"), "--texts", str(workplace / texts),
        "--recipe", str(workplace / "recipe.toml"), "--target-speedup", "1.5", *more,
    ]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> int:
    monkeypatch.setattr(sys, "argv", command)
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_model_and_texts_become_a_faster_bundle(workplace: Path, whole: Path) -> None:
    told = " ".join((whole / "err").read_text().split())
    assert "128 texts to learn from, 16 to validate by and 16 held out" in told
    assert "judged by how far answers agree with the model's own" in told
    assert "training takes about" in told
    assert "the same command goes on" in told
    assert "it writes bundle/" in told
    out = (whole / "out").read_text()
    assert "bundle: bundle   next: trbert-deploy predict bundle" in out

    # The figures again, by answering the held-out texts with what was made and with the model.
    summary = json.loads((whole / "out.json").read_text())
    lines = (whole / "compress" / "texts" / "test.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == summary["quality"]["rows"] == 16
    teacher = load_checkpoint_pipeline(workplace / "teacher")
    wanted = [each.label for each in teacher(texts, dense=True)]  # type: ignore[attr-defined]
    answers = load(whole / "bundle", threads=1)(texts, return_kept=True)
    same = [one.label == two for one, two in zip(answers, wanted, strict=True)]  # type: ignore[attr-defined]
    assert summary["quality"]["measure"] == "agreement"
    assert summary["quality"]["reduced"]["agreement"] == np.mean(same)
    assert summary["quality"]["dense"]["agreement"] == 1.0
    assert summary["quality"]["dense"]["divergence"] == 0.0
    kept = sum(len(each.kept[-1].positions) for each in answers if each.kept)
    assert kept < sum(each.num_tokens for each in answers)
    assert summary["quality"]["flops_speedup"] == pytest.approx(1.5, rel=0.25)
    assert f"{np.mean(same):.2%}" in out
    page = (whole / "report.html").read_text()
    assert "16 texts that were held out" in page
    assert f"{np.mean(same):.2%}" in page


@pytest.mark.usefixtures("pays")
def test_a_finished_run_is_not_done_again(
    workplace: Path,
    whole: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("compress", "bundle"):
        shutil.copytree(whole / name, here / name)
    before = (here / "bundle" / "manifest.json").stat().st_ino
    assert run(monkeypatch, arguments(workplace)) == 0
    out, err = capsys.readouterr()
    assert out == (whole / "out").read_text()
    assert "compress holds a finished run; remove it to make another one" in " ".join(err.split())
    assert (here / "bundle" / "manifest.json").stat().st_ino == before
    shutil.rmtree(here / "bundle")
    assert run(monkeypatch, arguments(workplace)) == 0
    files = [Bundle.open(each / "bundle").manifest.files for each in (here, whole)]
    assert files[0] == files[1]  # put in place again, not made again


@pytest.fixture(scope="module")
def with_exits(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose texts leave early: its directory, with what it noted."""
    place = tmp_path_factory.mktemp("exits")
    (workplace / "exits.toml").write_text('base = "exits"\n' + RECIPE + EXITS_RECIPE)
    notes: list[str] = []
    pages: list[str] = []

    def write_page(
        bench: BenchReport,
        kept: list[KeptText],
        quality: QualityReport,
        to_the_end: QualityReport | None,
    ) -> None:
        pages.append(render(bench, kept, quality=quality, to_the_end=to_the_end))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(probe, "LEAST_GAIN", 0.0)
        patched.setattr(run_module, "ROUNDS", Rounds.exactly(2))
        options = _exits_options(workplace)
        with pytest.raises(KeyboardInterrupt):
            compress(options, place / "bundle", place / "work", _bars("exits"))
        summary = compress(
            options, place / "bundle", place / "work", _bars(), notes.append, write_page
        )
    (place / "summary.json").write_text(json.dumps(summary))
    (place / "notes").write_text("\n".join(notes))
    (place / "page.html").write_text(*pages)
    return place


def test_texts_leave_early_and_both_savings_are_told(with_exits: Path) -> None:
    assert "texts that are easy will leave" in (with_exits / "notes").read_text()
    summary = json.loads((with_exits / "summary.json").read_text())
    both, tokens = summary["quality"], summary["to_the_end"]
    pipeline = load(with_exits / "bundle", threads=1)
    lines = (with_exits / "work" / "texts" / "test.jsonl").read_text().splitlines()
    results = pipeline.run(pipeline.tokenize([json.loads(line)["text"] for line in lines]))
    left = [np.mean([result.exit == cut for result in results]) for cut in range(2)]
    assert both["left_share"] == left and sum(left) > 0.0
    assert tokens["left_share"] == []
    assert both["flops_speedup"] > tokens["flops_speedup"]
    out = io.StringIO()
    print_compress(summary, Console(file=out, width=120))
    (row,) = (line for line in out.getvalue().splitlines() if "texts that leave" in line)
    assert f"{left[0]:.0%} / {left[1]:.0%}" in row
    (row,) = (line for line in out.getvalue().splitlines() if "operations" in line)
    for each in (tokens, both):
        assert f"{each['flops_speedup']:.2f}x fewer" in row
    (point, *_) = summary["bench"]["backends"][0]["points"]
    assert f"{point['reduced']['mean_ms']:.1f} ms" in out.getvalue()
    page = (with_exits / "page.html").read_text()
    assert "tokens dropped" in page and "texts that left early" in page
    for each in (tokens, both):
        assert f"<td>{each['flops_speedup']:.2f}</td>" in page


@pytest.mark.usefixtures("pays")
def test_a_gate_holds_for_tokens_and_exits_together(
    workplace: Path, with_exits: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where leaving early costs too much, none leaves."""
    shutil.copytree(with_exits / "work", here / "work")
    path = here / "work" / "compress.json"
    record = json.loads(path.read_text())
    for step in ("train", "export", "summary"):
        del record["steps"][step]
    path.write_text(json.dumps(record))
    path = here / "work" / "ckpt" / "training.json"
    path.write_text(path.read_text().replace(str(with_exits), str(here)))
    training = json.loads(path.read_text())
    own = training["stages"]["exits"]
    to_the_end = [point for point in training["points"] if point["exit_confidence"] == 1.0]
    # What was trained for costs too much, and so does every point where texts leave early.
    costly = iter([True, *(point["exit_confidence"] < 1.0 for point in training["points"])])
    monkeypatch.setattr(CompressOptions, "fails", lambda *_: next(costly, False))
    asked_for(here / "work", min_agreement=99.0)
    options = replace(_exits_options(workplace), min_agreement=99.0)
    notes: list[str] = []
    compress(options, here / "bundle", here / "work", _bars(), notes.append)
    (told,) = (note for note in notes if "cost too much" in note)
    assert "and the confidence 1.000 of exits" in told
    reduction = load(here / "work" / "bundle").reduction
    assert reduction.exits == ExitRule(1.0)
    chosen = max(
        (point for point in to_the_end if point["flops_speedup"] <= own["flops_speedup"]),
        key=lambda point: point["flops_speedup"],
    )
    assert reduction.cuts[0].rule.value == chosen["threshold"]


def test_texts_leave_early_by_default_where_that_pays(workplace: Path, here: Path) -> None:
    spec = tiny_spec()
    assert run_module._recipe(None, spec) == Recipe.named("exits")
    assert run_module._recipe("gates", spec) == Recipe()
    numbers = tiny_spec(task="feature-extraction", labels=())
    assert run_module._recipe(None, numbers) == Recipe()
    with pytest.raises(ConfigError, match="do not tell how sure they are"):
        run_module._recipe("exits", numbers)
    several = tiny_spec(answers={"problem": "multi_label_classification"})
    tags = tiny_spec(task="token-classification", labels=("O", "B-X"))
    scores = tiny_spec(task="text-ranking", labels=("LABEL_0",))
    for other in (several, tags, scores):
        assert run_module._recipe(None, other) == Recipe()
        assert run_module._recipe("exits", other) == Recipe.named("exits")


@pytest.mark.usefixtures("pays")
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    workplace: Path, whole: Path, here: Path
) -> None:
    options = _options(workplace)
    for place in ("time", "joint", "hard", "evaluate"):
        with pytest.raises(KeyboardInterrupt):
            compress(options, here / "parts", here / "work", _bars(place))
        assert not (here / "parts").exists()
    compress(options, here / "parts", here / "work", _bars())
    parts, at_once = (Bundle.open(each).manifest for each in (here / "parts", whole / "bundle"))
    assert parts.files[WEIGHTS] == at_once.files[WEIGHTS]
    assert parts.reduction == at_once.reduction


@pytest.mark.usefixtures("pays")
def test_a_missed_gate_leaves_the_old_bundle(
    workplace: Path,
    trained: Path,
    own_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (own_bundle / "manifest.json").read_bytes()
    monkeypatch.setattr(CompressOptions, "fails", lambda self, score, teacher: True)
    asked_for(trained, min_agreement=100.0)
    command = arguments(
        workplace, "texts.jsonl", "--min-agreement", "100", "--output", str(own_bundle)
    )
    assert run(monkeypatch, [*command, "--json", "out.json"]) == 3
    out, err = capsys.readouterr()
    assert "the best there is; none keeps to what was asked for" in " ".join(err.split())
    told = " ".join(out.split())
    assert "wanted were 100 %; the bundle lies in compress/bundle and was not put" in told
    assert (own_bundle / "manifest.json").read_bytes() == before
    assert load(trained / "bundle")(["a film"])
    assert json.loads(Path("out.json").read_text())["bundle"] == "compress/bundle"


@pytest.mark.usefixtures("pays")
def test_the_fastest_point_within_the_gate_is_taken(
    workplace: Path, trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only points that keep more than the wanted one keep to a gate that it misses."""
    seen: list[float] = []

    def fails(self: CompressOptions, score: float, teacher: float) -> bool:
        seen.append(score)
        return len(seen) == 1  # the one that was trained for, alone

    monkeypatch.setattr(CompressOptions, "fails", fails)
    notes: list[str] = []
    asked_for(trained, min_agreement=99.0)
    options = replace(_options(workplace), min_agreement=99.0)
    compress(options, here / "bundle", trained, _bars(), notes.append)
    (told,) = (note for note in notes if "cost too much" in note)
    assert told.endswith("the fastest that keeps to what was asked for")
    record = json.loads((trained / "compress.json").read_text())
    threshold = record["steps"]["train"]["threshold"]
    rules = Bundle.open(here / "bundle").manifest.reduction.cuts
    assert {cut.rule.value for cut in rules} == {threshold}


def test_where_it_does_not_pay_the_dense_bundle_is_made(
    workplace: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(probe, "LEAST_GAIN", 1e9)
    assert run(monkeypatch, arguments(workplace, "texts.jsonl", "--json", "out.json")) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "dense bundle: bundle, since with 1.5 times fewer operations a text of" in out
    assert "the model is too small, or its texts are too short" in out
    assert Bundle.open(here / "bundle").manifest.reduction.cuts == ()
    summary = json.loads((here / "out.json").read_text())
    assert "quality" not in summary
    assert summary["payoff"]["dense_ms"] > 0 < summary["payoff"]["reduced_ms"]
    assert not (here / "compress" / "ckpt").exists()  # no training


def test_a_speedup_that_texts_do_not_allow_is_told(workplace: Path, here: Path) -> None:
    notes: list[str] = []
    options = replace(_options(workplace), target_speedup=50.0)
    compress(options, here / "bundle", here / "work", _bars(), notes.append)
    assert "cannot be made 50 times cheaper: expected longer texts" in notes[-1]
    assert Bundle.open(here / "bundle").manifest.reduction.cuts == ()


def test_a_drop_needs_labels(workplace: Path, here: Path) -> None:
    options = replace(_options(workplace), max_drop=1.0)
    with pytest.raises(DataError, match="have no label, by which a drop is judged: expected lab"):
        compress(options, here / "bundle", here / "work", _bars())
    assert not (here / "bundle").exists()


@pytest.mark.usefixtures("pays")
def test_labelled_texts_come_through_a_pipe(workplace: Path, here: Path) -> None:
    os.mkfifo(here / "pipe")
    content = (workplace / "labelled.jsonl").read_bytes()
    writer = threading.Thread(target=lambda: (here / "pipe").write_bytes(content))
    writer.start()
    options = replace(_options(workplace), texts=str(here / "pipe"), max_drop=100.0)
    with pytest.raises(KeyboardInterrupt):
        compress(options, here / "bundle", here / "work", _bars("2/6 probe"))
    writer.join()
    notes: list[str] = []
    summary = compress(options, here / "bundle", here / "work", _bars(), notes.append)
    assert any(note.endswith("judged by their labels") for note in notes)
    assert summary["quality"]["measure"] == "accuracy"
    assert summary["missed"] is None
    assert load(here / "bundle")(["a film"])  # and the pipe was not read again


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda o, w: replace(o, model=str(w / "encoder")), CheckpointError, "no head that answ"),
        (lambda o, w: replace(o, recipe="none.toml"), ConfigError, "none.toml is neither a file"),
        (lambda o, w: replace(o, texts="none.jsonl"), TrbertError, "none.jsonl"),
    ],
)
def test_what_cannot_be_begun_leaves_no_bundle(
    workplace: Path,
    here: Path,
    change: Callable[[CompressOptions, Path], CompressOptions],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        compress(change(_options(workplace), workplace), here / "bundle", here / "work", _bars())
    assert not (here / "bundle").exists()
    with pytest.raises(KeyboardInterrupt):  # and does not bind what is begun in its place
        compress(_options(workplace), here / "bundle", here / "work", _bars("2/6 probe"))


def test_places_that_are_taken_are_refused(workplace: Path, here: Path) -> None:
    options = _options(workplace)
    (here / "letters").mkdir()
    (here / "letters" / "dear").write_text("friend")
    with pytest.raises(BundleError, match="letters exists and is not a bundle"):
        compress(options, here / "letters", here / "work", _bars())
    with pytest.raises(ConfigError, match="letters is not empty: choose another --work"):
        compress(options, here / "bundle", here / "letters", _bars())
    assert (here / "letters" / "dear").read_text() == "friend"


def test_a_run_goes_on_with_its_own_options_alone(workplace: Path, here: Path) -> None:
    (here / "texts.jsonl").write_bytes((workplace / "texts.jsonl").read_bytes())
    options = replace(_options(workplace), texts=str(here / "texts.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        compress(options, here / "bundle", here / "work", _bars("2/6 probe"))
    other = replace(options, target_speedup=2.0)
    with pytest.raises(ConfigError, match=r"holds a run with other options \(target_speedup\)"):
        compress(other, here / "bundle", here / "work", _bars())
    with (here / "texts.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(ConfigError, match=r"texts\.jsonl has changed since the run in .* began"):
        compress(options, here / "bundle", here / "work", _bars())
    (here / "work" / "compress.json").write_text('{"version": 1}')
    with pytest.raises(CheckpointError, match=r"compress\.json is damaged"):
        compress(options, here / "bundle", here / "work", _bars())


def test_two_runs_do_not_share_a_directory(workplace: Path, here: Path) -> None:
    options = _options(workplace)

    @contextmanager
    def bars(title: str) -> Iterator[Progress]:
        with pytest.raises(ConfigError, match="another run is at work in"):
            compress(options, here / "bundle", here / "work", _bars())
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        compress(options, here / "bundle", here / "work", bars)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5000, "83 min"), (7800, "2 h 10 min")],
)
def test_times_are_told_roughly(seconds: float, told: str) -> None:
    assert rough_time(seconds) == told


def _options(workplace: Path, texts: str = "texts.jsonl") -> CompressOptions:
    return CompressOptions(
        str(workplace / "teacher"),
        str(workplace / texts),
        target_speedup=1.5,
        recipe=str(workplace / "recipe.toml"),
    )


def _exits_options(workplace: Path) -> CompressOptions:
    return replace(_options(workplace), recipe=str(workplace / "exits.toml"))


def _bars(interrupted: str | None = None) -> Callable[[str], Any]:
    """Shows nothing; ends the run where a part of this title begins, or in the middle of a step
    of this name, if one is given.
    """

    @contextmanager
    def bars(title: str) -> Iterator[Progress]:
        if title == interrupted:
            raise KeyboardInterrupt

        def tell(step: str, done: int, total: int | None) -> None:
            if interrupted and step.startswith(interrupted) and total and done > total // 2:
                raise KeyboardInterrupt

        yield tell

    return bars
