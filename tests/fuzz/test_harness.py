"""Faults that are planted are found: what ends a process or hangs, and what is no right answer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz import pool, worker
from fuzz.cases import ANY, ASKED, SAME, Case, Original, resigned
from fuzz.worker import Judge, judged

import trbert_deploy
from trbert_deploy.bundle.manifest import SAMPLES, TOKENIZER
from trbert_deploy.errors import BundleError
from trbert_deploy.runtime.pipeline import Pipeline

#: The texts are longer than the tiny model takes, which its worker does not want to be told.
pytestmark = pytest.mark.filterwarnings(
    "ignore::trbert_deploy.runtime.tokenizing.TruncationWarning"
)

PROGRAM = """
import os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    number = int(line)
    if number == 3:
        os.abort()
    if number == 5:
        time.sleep(600)
    if number == 6:
        print("last words", file=sys.stderr, flush=True)
        sys.exit(7)
    outcome = '"failed", "why": "it is odd", "group": "odd"' if number % 2 else '"fine"'
    print('{"number": %d, "kind": "a", "outcome": %s}' % (number, outcome), flush=True)
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_what_ends_or_hangs_is_attributed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    (tmp_path / "planted.py").write_text(PROGRAM)
    monkeypatch.setattr(pool, "PATIENCE", 3.0)
    monkeypatch.setattr(pool, "PACKAGE", tmp_path)
    verdicts = pool.judge_all(range(10), {}, tmp_path, workers, program="planted")
    assert verdicts.outcomes == {("a", "fine"): 4, ("a", "failed"): 3, ("?", "failed"): 3}
    told = str(verdicts)
    assert "case 3 (?): the process ended with status -6" in told
    assert "case 5 (?): no end after 3 s" in told
    assert "case 6 (?): the process ended with status 7: last words" in told
    assert "3 like case " in told and "(a): it is odd" in told
    assert "make fuzz ARGS=--fuzz-case=6" in told


def test_a_process_that_does_not_start_is_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"did not start: .*No module named fuzz\.nothing"):
        pool.judge_all(range(2), {}, tmp_path, 1, program="fuzz.nothing")


@pytest.fixture
def original(tiny_bundle: Path) -> Original:
    return Original.read(tiny_bundle)


@pytest.fixture
def judge(original: Original, tmp_path: Path) -> Judge:
    return Judge({"today": original}, tmp_path / "scratch")


def case(files: dict[str, Any], may: str = SAME) -> Case:
    return Case(0, "planted", "today", files, may)


def test_a_bundle_as_it_was_is_answered(judge: Judge) -> None:
    for may in (SAME, ASKED, ANY):
        assert judge.outcome(case({}, may)) == "answered"


def test_what_was_damaged_is_mended(judge: Judge, original: Original) -> None:
    damage = {TOKENIZER: b"", SAMPLES: lambda path: os.mkfifo(path), "extra": b"x"}
    assert judge.outcome(case(damage)) == "BundleError"
    assert judge.outcome(case({})) == "answered"


def load_with(change: Callable[[Pipeline], Pipeline]) -> Callable[..., Pipeline]:
    return lambda *args, **options: change(trbert_deploy.load(*args, **options))


def raising(problem: Exception) -> Callable[..., Pipeline]:
    def load(*arguments: object, **options: object) -> Pipeline:
        raise problem

    return load


@pytest.mark.parametrize(
    ("load", "why"),
    [
        (load_with(lambda pipeline: pipeline.at_threshold(0.9)), "Wrong at .*(keeps|answers)"),
        (raising(KeyError("text")), r"KeyError at .*text"),
        (raising(BundleError("two\nlines")), "Wrong at .*BundleError of several lines"),
        (raising(BundleError("\x1b[31mred")), "Wrong at .*BundleError of several lines"),
        (raising(MemoryError()), "MemoryError"),
    ],
)
def test_what_may_not_come_of_a_case_fails_it(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, load: Callable[..., Pipeline], why: str
) -> None:
    monkeypatch.setattr(worker, "load", load)
    found = judged(judge, case({}))
    assert found["outcome"] == "failed"
    assert re.match(why, found["why"])


def test_a_damaged_file_that_is_opened_fails_its_case(
    judge: Judge, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = resigned(original, {SAMPLES: b'{"text": "other"}\n'})
    assert judge.outcome(case(files, ANY)) == "answered"
    assert "another manifest" in judged(judge, case(files))["why"]
