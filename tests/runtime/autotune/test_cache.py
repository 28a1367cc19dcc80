"""What is remembered: under its conditions, by all processes, and only if it is whole."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trbert_deploy.runtime.autotune import cache as cached
from trbert_deploy.runtime.autotune.cache import MOST_FINDINGS, remembered

WAITING = "another process is measuring on this machine: waiting for it"


def never() -> Any:
    raise AssertionError("measured again")


def silent(message: str) -> None:
    raise AssertionError(message)


def files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.json"))


def test_findings_under_other_conditions_stay(cache: Path) -> None:
    for threads in (1, 4):
        assert remembered("time", {"threads": threads}, lambda t=threads: t * 10, silent) == (
            threads * 10
        )
    for threads in (1, 4):
        assert remembered("time", {"threads": threads}, never, silent) == threads * 10
    assert remembered("latency", {"threads": 1}, lambda: "another", silent) == "another"
    assert remembered("time", {"threads": 1}, never, silent) == 10
    assert len(files(cache)) == 3


@pytest.mark.parametrize("found", [0, False, "", [], [[0.5, 1.25e-3], [1.0, 2.0]], {"a": None}])
def test_what_is_found_comes_back(cache: Path, found: Any) -> None:
    assert remembered("time", {}, lambda: found, silent) == found
    assert remembered("time", {}, never, silent) == found


def change_found(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "found": {**data["found"], "backend": "another"}}


def change_key(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "digest": cached._digest([{"cores": 3}, data["found"]])}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: '{"key": 1, "found": 2}',
        lambda text: "[" * 100_000,
        lambda text: json.dumps(change_found(json.loads(text))),
        lambda text: json.dumps(change_key(json.loads(text))),
        lambda text: text.replace("openvino", "onnxruntime"),
    ],
)
def test_a_damaged_finding_is_made_again(cache: Path, damage: Callable[[str], str]) -> None:
    found = {"backend": "openvino", "row_ms": {"openvino": 1.0}}
    remembered("backend", {"cores": 2}, lambda: found, silent)
    (file,) = files(cache)
    whole = file.read_text()
    file.write_text(damage(whole))
    again = {"backend": "measured again"}
    assert remembered("backend", {"cores": 2}, lambda: again, silent) == again
    assert remembered("backend", {"cores": 2}, never, silent) == again
    assert files(cache) == [file]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_byte_that_is_another_is_seen(cache: Path, place: int, value: int) -> None:
    found = {"backend": "openvino", "row_ms": {"openvino": 1.0}}
    remembered("backend", {"cores": 2}, lambda: found, silent)
    (file,) = files(cache)
    whole = file.read_bytes()
    place %= len(whole)
    file.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
    try:
        assert remembered("backend", {"cores": 2}, lambda: "again", silent) in (found, "again")
    finally:
        file.write_bytes(whole)


def test_old_findings_go(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "MOST_FINDINGS", 3)
    for number in range(3):
        remembered("time", {"number": number}, lambda n=number: n, silent)
    by_number = {json.loads(file.read_text())["found"]: file for file in files(cache)}
    for age, number in enumerate((1, 2, 0)):  # 0 is the oldest
        os.utime(by_number[number], (1e9 - age, 1e9 - age))
    remembered("time", {"number": 3}, lambda: 3, silent)
    kept = sorted(json.loads(file.read_text())["found"] for file in files(cache))
    assert kept == [1, 2, 3]
    assert MOST_FINDINGS >= 100


def test_a_measurement_that_fails_leaves_the_turn_to_others(cache: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        remembered("time", {}, lambda: 1 / 0, silent)
    assert files(cache) == []
    assert remembered("time", {}, lambda: 5, silent) == 5


def test_threads_measure_once(cache: Path) -> None:
    measuring, waits = threading.Event(), threading.Event()
    found: list[int] = []

    def measure() -> int:
        measuring.set()
        assert waits.wait(60)
        return 7

    first = threading.Thread(
        target=lambda: found.append(remembered("time", {}, measure, silent)), daemon=True
    )
    first.start()
    assert measuring.wait(60)
    said: list[str] = []

    def note(message: str) -> None:
        said.append(message)
        waits.set()

    assert remembered("time", {}, never, note) == 7
    first.join(60)
    assert found == [7]
    assert said == [WAITING]


#: A process that measures until its stdin ends, and tells what it found.
MEASURING = """
import sys
from pathlib import Path
from trbert_deploy.runtime.autotune import cache as cached

cached.user_cache_path = lambda name: Path(sys.argv[1]) / name

def measure():
    print("measuring", flush=True)
    sys.stdin.read()
    return "by the other"

print(cached.remembered("time", {"cores": 2}, measure, print))
"""


@pytest.fixture
def other(cache: Path) -> Any:
    """Another process, which is measuring."""
    with subprocess.Popen(
        [sys.executable, "-c", MEASURING, str(cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "measuring\n"
        yield process
        process.kill()


def test_processes_measure_once(cache: Path, other: subprocess.Popen[str]) -> None:
    said: list[str] = []

    def note(message: str) -> None:
        said.append(message)
        assert other.stdin is not None
        other.stdin.close()

    assert remembered("time", {"cores": 2}, never, note) == "by the other"
    assert said == [WAITING]
    assert other.stdout is not None and other.stdout.read() == "by the other\n"
    (file,) = files(cache)
    assert json.loads(file.read_text())["found"] == "by the other"


def test_a_process_that_dies_gives_up_its_turn(cache: Path, other: subprocess.Popen[str]) -> None:
    assert remembered("time", {"cores": 2}, lambda: "mine", lambda message: other.kill()) == "mine"
    assert remembered("time", {"cores": 2}, never, silent) == "mine"


def test_measurements_of_other_things_take_turns_too(
    cache: Path, other: subprocess.Popen[str]
) -> None:
    said: list[str] = []

    def note(message: str) -> None:
        said.append(message)
        assert other.stdin is not None
        other.stdin.close()

    assert remembered("another", {}, lambda: "mine", note) == "mine"
    assert said == [WAITING]
    assert len(files(cache)) == 2


def test_a_place_that_cannot_be_written_still_answers(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered("time", {"cores": 2}, lambda: 5, silent)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(cached, "write_json", refuse)
    monkeypatch.setattr(cached, "hold", refuse)
    assert remembered("time", {"cores": 2}, never, silent) == 5
    assert remembered("time", {"cores": 3}, lambda: 6, silent) == 6
    assert remembered("time", {"cores": 3}, lambda: 7, silent) == 7


def test_without_a_place_it_still_answers(cache: Path) -> None:
    cache.write_text("a file where the directory would be")
    assert remembered("time", {}, lambda: 5, silent) == 5
