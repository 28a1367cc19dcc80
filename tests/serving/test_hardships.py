"""What a service does in hard times: slow clients, a full disk, a torn bundle, a crowd."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx
import overload
import pytest
from conftest import make_texts
from services_in_tests import SOON, free_ports, serving

from trbert_deploy import load
from trbert_deploy.errors import DataError
from trbert_deploy.runtime.pipeline import Pipeline

TEXTS = [row["text"] for row in make_texts(60, seed=5)]
BODY = {"inputs": TEXTS[0]}
#: What the command says of itself once it can be asked.
HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: "


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle, threads=1)


def test_a_client_that_sends_a_byte_now_and_then_holds_up_nobody(pipeline: Pipeline) -> None:
    with serving(pipeline, timeout_s=1.0) as client:
        address = (client.base_url.host, client.base_url.port)
        slow = [socket.create_connection(address) for _ in range(30)]
        for each in slow:
            each.sendall(HEAD + b"1000\r\n\r\n")
        start = time.monotonic()
        answered = 0
        while time.monotonic() - start < 0.8:
            for each in slow:
                each.sendall(b"{")
            assert client.post("/predict", json=BODY).status_code == 200
            answered += 1
        assert answered > 3
        for each in slow:
            each.settimeout(SOON)
            told = each.recv(4096)
            assert told.startswith(b"HTTP/1.1 408") and b"did not come within 1 s" in told
            each.close()
        assert client.post("/predict", json=BODY).status_code == 200


def test_a_service_that_was_killed_starts_again(tiny_bundle: Path) -> None:
    """What it leaves behind hinders nobody: nothing is on disk but what it remembers."""
    before = sorted(path.name for path in tiny_bundle.iterdir())
    for _ in range(2):
        with overload.service(tiny_bundle) as service:
            url = f"http://127.0.0.1:{service.port}/predict"
            answer = httpx.post(url, json=BODY, timeout=SOON)
            assert answer.status_code == 200
            service.process.send_signal(signal.SIGKILL)
            assert service.process.wait(SOON) == -signal.SIGKILL
    assert sorted(path.name for path in tiny_bundle.iterdir()) == before


LOGGING = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
from trbert_deploy.cli import main
main()
"""


def test_a_full_disk_costs_the_log_and_no_answer(tiny_bundle: Path, tmp_path: Path) -> None:
    """Neither the log can be written, nor what was measured."""
    (port,) = free_ports(1)
    log = tmp_path / "log"
    command = [sys.executable, "-c", LOGGING, "serve", str(tiny_bundle), "--threads", "1"]
    command += ["--port", str(port), "--thresholds", "0.1", "0.9"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stderr=file, env=environment) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SOON) as client,
    ):
        try:
            stop = time.monotonic() + SOON
            while True:
                try:
                    client.get("/health")
                    break
                except httpx.TransportError:
                    assert process.poll() is None and time.monotonic() < stop
                    time.sleep(0.05)
            for _ in range(20):
                assert client.post("/predict", json=BODY).status_code == 200
            assert log.stat().st_size == 400  # it is full
        finally:
            process.kill()


def test_a_bundle_that_is_torn_on_disk_is_not_started_and_not_taken(
    own_bundle: Path, tmp_path: Path
) -> None:
    with (
        overload.service(own_bundle, "--watch") as service,
        httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=SOON) as client,
    ):
        first = client.post("/predict", json=BODY).json()
        torn = Path(shutil.copytree(own_bundle, tmp_path / "torn"))
        manifest = json.loads((torn / "manifest.json").read_text())
        manifest["sha256"] = "0" * 64  # of another bundle, and not of this one
        (torn / "manifest.json").write_text(json.dumps(manifest))
        own_bundle.rename(tmp_path / "old_bundle")
        torn.rename(own_bundle)
        assert "manifest" in service.told("stays")
        assert client.post("/predict", json=BODY).json() == first
    started = subprocess.run(
        [sys.executable, "-m", "trbert_deploy", "serve", str(own_bundle), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert started.returncode == 1 and "manifest" in started.stderr
    assert "Traceback" not in started.stderr


@pytest.mark.parametrize("options", [(), ("--shed", "quality", "--min-agreement", "50")])
def test_more_than_a_service_can_give_is_refused_and_nothing_else(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answers = overload.Answers(load(tiny_bundle, threads=1, max_batch_tokens=64), TEXTS)
    limits = ("--max-batch-tokens", "64", "--max-waiting-tokens", "300")
    with overload.service(tiny_bundle, *limits, *options) as service:
        counts = overload.ask(service.port, answers, clients=24, requests=600)
    assert counts.asked == 600 and counts.right > 50 and counts.refused[429] > 0
    assert not (counts.wrong or counts.lost or counts.other)
    assert bool(counts.shed) == bool(options)


def test_what_is_not_the_librarys_answer_is_found(pipeline: Pipeline) -> None:
    answers = overload.Answers(pipeline, TEXTS[:5])
    (answer,) = pipeline(TEXTS[:1], return_kept=True)
    tokens = pipeline.tokenizer.encode(TEXTS[:1])[0].tokens
    told = {"answers": [{**json.loads(json.dumps(answer.to_json())), "tokens": tokens}]}

    def copy() -> dict:
        return json.loads(json.dumps(told))

    assert answers.right(TEXTS[0], copy())
    assert not answers.right(TEXTS[1], copy())  # another text's
    wrong = copy()
    wrong["answers"][0]["score"] += 0.01
    assert not answers.right(TEXTS[0], wrong)
    wrong = copy()
    wrong["answers"][0]["kept"][0]["positions"].pop()
    assert not answers.right(TEXTS[0], wrong)
    with pytest.raises(DataError, match="1 of 2 texts have the answer of another"):
        overload.Answers(pipeline, [TEXTS[0], TEXTS[0]])
