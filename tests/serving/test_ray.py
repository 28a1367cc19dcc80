"""The service on Ray Serve: two replicas, of which one is killed while clients ask."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import httpx2 as httpx
import pytest
from conftest import make_texts
from pydantic import ValidationError
from ray_in_tests import local_cluster, process_of
from services_in_tests import free_ports

from trbert_deploy.errors import BundleError, ConfigError, StorageError
from trbert_deploy.runtime.loading import load

serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

from ray.serve import Application  # noqa: E402
from ray.serve._private.api import (  # noqa: E402
    call_user_app_builder_with_args_if_necessary,
)

from trbert_deploy.serving.ray import Arguments, application  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning"),
]


def test_a_killed_replica_is_replaced_and_answers_stay_right(tiny_bundle: Path) -> None:
    texts = [row["text"] for row in make_texts(8, seed=5)]
    wanted = load(tiny_bundle)(texts)
    (port,) = free_ports(1)
    with local_cluster(), ExitStack() as stack:
        stack.callback(serve.shutdown)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        arguments = Arguments(bundle=str(tiny_bundle), min_replicas=2, max_replicas=2)
        serve.run(application(arguments), name="app")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            right = 0
            for turn in range(40):
                if turn == 10:
                    os.kill(process_of("ray::ServeReplica:app:"), signal.SIGKILL)
                place = turn % len(texts)
                answer = client.post("/predict", json={"inputs": texts[place]})
                if answer.status_code == 200:
                    best = answer.json()[0]
                    assert best["label"] == wanted[place].label
                    assert best["score"] == pytest.approx(wanted[place].score, abs=1e-4)
                    right += 1
            assert right >= 39  # of the one that was under way the client may be told to ask again
            for _ in range(600):
                running = serve.status().applications["app"].deployments["trbert-deploy"]
                if running.replica_states.get("RUNNING") == 2:
                    break
                time.sleep(0.1)
            assert running.replica_states == {"RUNNING": 2}
            assert client.post("/predict", json={"inputs": ""}).status_code in (400, 422)


def test_the_commands_arguments_are_understood(tiny_bundle: Path) -> None:
    """``serve run`` has text for all values, and gives it to the function as Ray has it."""
    told = {"bundle": str(tiny_bundle), "max_replicas": "2", "target_ongoing_requests": "4"}
    assert isinstance(call_user_app_builder_with_args_if_necessary(application, told), Application)
    with pytest.raises(ValidationError, match="replicas"):
        call_user_app_builder_with_args_if_necessary(application, {**told, "replicas": "2"})


def test_bad_arguments_are_refused(own_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        application(Arguments(bundle=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="min_replicas is 3: expected at most max_replicas"):
        application(Arguments(bundle=str(own_bundle), min_replicas=3, max_replicas=2))
    with pytest.raises(ValidationError):
        Arguments(bundle=str(own_bundle), replicas=2)  # type: ignore[call-arg]
    (own_bundle / "manifest.json").write_text("{}")
    with pytest.raises(BundleError):
        application(Arguments(bundle=str(own_bundle)))
