"""Whole compressions of a tiny model, from the command line."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_texts
from training.test_run import make_workplace, options_for, with_recipe

from trbert_deploy.bench.timing import Rounds
from trbert_deploy.bundle.bundle import Bundle
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
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.progress import Progress
from trbert_deploy.runtime.pipeline import load
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


@pytest.mark.usefixtures("pays")
def test_a_model_and_texts_become_a_faster_bundle(
    workplace: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = arguments(workplace, "texts.jsonl", "--json", "out.json")
    assert run(monkeypatch, command) == 0
    out, err = capsys.readouterr()
    told = " ".join(err.split())
    assert "128 texts to learn from, 16 to validate by and 16 held out" in told
    assert "judged by how far answers agree with the model's own" in told
    assert "training takes about" in told
    assert "the same command goes on" in told
    assert "it writes bundle/" in told
    assert "bundle: bundle   next: trbert-deploy predict bundle" in out

    # The figures again, by answering the held-out texts with what was made and with the model.
    summary = json.loads((here / "out.json").read_text())
    lines = (here / "compress" / "texts" / "test.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == summary["quality"]["rows"] == 16
    export_bundle(workplace / "teacher", here / "teacher-bundle")
    wanted = [each.label for each in load("teacher-bundle", threads=1)(texts, dense=True)]
    answers = load("bundle", threads=1)(texts, return_kept=True)
    same = [one.label == two for one, two in zip(answers, wanted, strict=True)]  # type: ignore[attr-defined]
    assert summary["quality"]["measure"] == "agreement"
    assert summary["quality"]["reduced"]["agreement"] == np.mean(same)
    assert summary["quality"]["dense"] == {
        "agreement": 1.0, "divergence": 0.0, "seconds": summary["quality"]["dense"]["seconds"]
    }  # fmt: skip
    kept = sum(len(each.kept[-1].positions) for each in answers if each.kept)
    assert kept < sum(each.num_tokens for each in answers)
    assert summary["quality"]["flops_speedup"] == pytest.approx(1.5, rel=0.25)
    assert f"{np.mean(same):.2%}" in out
    page = (here / "report.html").read_text()
    assert "16 texts that were held out" in page
    assert f"{np.mean(same):.2%}" in page

    # Again: nothing is done twice.
    before = (here / "bundle" / "manifest.json").stat().st_ino
    assert run(monkeypatch, command) == 0
    assert capsys.readouterr().out == out
    assert (here / "bundle" / "manifest.json").stat().st_ino == before
    shutil.rmtree(here / "bundle")
    assert run(monkeypatch, command) == 0
    assert load("bundle", threads=1)(texts) == load("compress/bundle", threads=1)(texts)


@pytest.mark.usefixtures("pays")
def test_an_interrupted_run_ends_as_an_uninterrupted_one(workplace: Path, here: Path) -> None:
    options = _options(workplace)
    compress(options, here / "whole", here / "work-1", _bars())
    for place in ("time", "joint", "hard", "evaluate"):
        with pytest.raises(KeyboardInterrupt):
            compress(options, here / "parts", here / "work-2", _bars(place))
        assert not (here / "parts").exists()
    compress(options, here / "parts", here / "work-2", _bars())
    whole, parts = (Bundle.open(here / name).manifest for name in ("whole", "parts"))
    assert whole.files == parts.files
    assert whole.reduction == parts.reduction


@pytest.mark.usefixtures("pays")
def test_a_missed_gate_leaves_the_old_bundle(
    workplace: Path,
    here: Path,
    own_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (own_bundle / "manifest.json").read_bytes()
    monkeypatch.setattr(CompressOptions, "fails", lambda self, score, teacher: True)
    command = arguments(
        workplace, "texts.jsonl", "--min-agreement", "100", "--output", str(own_bundle)
    )
    assert run(monkeypatch, [*command, "--json", "out.json"]) == 3
    out, err = capsys.readouterr()
    assert "the best there is; none keeps to what was asked for" in " ".join(err.split())
    assert "wanted were 100 %; the bundle lies in compress/bundle and was not put" in out
    assert (own_bundle / "manifest.json").read_bytes() == before
    assert load(here / "compress" / "bundle")(["a film"])
    assert json.loads((here / "out.json").read_text())["bundle"] == "compress/bundle"


@pytest.mark.usefixtures("pays")
def test_the_fastest_point_within_the_gate_is_taken(
    workplace: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only points that keep more than the wanted one keep to a gate that it misses."""
    seen: list[float] = []

    def fails(self: CompressOptions, score: float, teacher: float) -> bool:
        seen.append(score)
        return len(seen) == 1  # the one that was trained for, alone

    monkeypatch.setattr(CompressOptions, "fails", fails)
    notes: list[str] = []
    options = replace(_options(workplace), min_agreement=99.0)
    compress(options, here / "bundle", here / "work", _bars(), notes.append)
    (told,) = (note for note in notes if "cost too much" in note)
    assert told.endswith("the fastest that keeps to what was asked for")
    record = json.loads((here / "work" / "compress.json").read_text())
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


@pytest.mark.usefixtures("pays")
def test_labels_judge_where_there_are_any(workplace: Path, here: Path) -> None:
    options = replace(_options(workplace, "labelled.jsonl"), max_drop=100.0)
    summary = compress(options, here / "bundle", here / "work", _bars())
    assert summary["quality"]["measure"] == "accuracy"
    assert summary["missed"] is None
    asked = replace(options, max_drop=None, min_agreement=2.0)  # of the model's own answers
    summary = compress(asked, here / "bundle", here / "other", _bars())
    assert summary["quality"]["measure"] == "agreement"


def test_a_drop_needs_labels(workplace: Path, here: Path) -> None:
    options = replace(_options(workplace), max_drop=1.0)
    with pytest.raises(DataError, match="have no label, by which a drop is judged: expected lab"):
        compress(options, here / "bundle", here / "work", _bars())
    assert not (here / "bundle").exists()


@pytest.mark.usefixtures("pays")
def test_texts_come_through_a_pipe(
    workplace: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(here / "pipe")
    content = (workplace / "texts.jsonl").read_bytes()
    writer = threading.Thread(target=lambda: (here / "pipe").write_bytes(content))
    writer.start()
    options = replace(_options(workplace), texts=str(here / "pipe"))
    with pytest.raises(KeyboardInterrupt):
        compress(options, here / "bundle", here / "work", _bars("guide"))
    writer.join()
    compress(options, here / "bundle", here / "work", _bars())  # the pipe is not read again
    assert load(here / "bundle")(["a film"])


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
        compress(options, here / "bundle", here / "work", _bars("time"))
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


def _bars(interrupted: str | None = None) -> Callable[[str], Any]:
    """Shows nothing; ends the run in the middle of a step of this name, if one is given."""

    @contextmanager
    def bars(title: str) -> Iterator[Progress]:
        def tell(step: str, done: int, total: int | None) -> None:
            if interrupted and step.startswith(interrupted) and total and done > total // 2:
                raise KeyboardInterrupt

        yield tell

    return bars
