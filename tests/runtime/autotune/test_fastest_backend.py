"""The fastest backend: chosen among those that answer alike, and remembered where it holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.cli import main
from trbert_deploy.errors import ConfigError, MissingDependencyError
from trbert_deploy.runtime.autotune import cache as cached
from trbert_deploy.runtime.autotune import fastest_backend
from trbert_deploy.runtime.autotune.fastest_backend import Choice, choose_backend, measure
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.chain import Chain, Timing
from trbert_deploy.runtime.pipeline import load
from trbert_deploy.runtime.token_state import RowResult, TokenRow

pytestmark = pytest.mark.usefixtures("cache")

SECONDS = {"onnxruntime fp32": 0.004, "openvino fp32": 0.003, "openvino bf16": 0.002}


class Known:
    """Stands for a chain: answers so fast, and drops the first tokens or labels otherwise."""

    def __init__(self, name: str, kept_from: int = 0, label: int = 0) -> None:
        self.seconds, self.kept_from, self.label = SECONDS[name], kept_from, label

    def run(self, rows: list[TokenRow], timing: Timing | None = None) -> list[RowResult]:
        if timing is not None:
            timing.total_seconds = self.seconds * len(rows)
        logits = np.eye(2, dtype=np.float32)[self.label]
        return [
            RowResult({"logits": logits}, (np.arange(self.kept_from, len(row)),)) for row in rows
        ]


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def stand_in(monkeypatch: pytest.MonkeyPatch, **changed: Known | Exception) -> None:
    """Let the candidates be ``Known`` chains; ``changed`` by name with _ for the space."""

    def open_backend(name: str, bundle: Bundle, options: BackendOptions) -> object:
        full = f"{name} {options.precision}"
        default = Known(full) if full in SECONDS else ConfigError("no 8-bit weights")
        chain = changed.get(full.replace(" ", "_"), default)
        if isinstance(chain, Exception):
            raise chain
        return chain

    monkeypatch.setattr(fastest_backend, "open_backend", open_backend)
    monkeypatch.setattr(fastest_backend, "Chain", lambda backend, reduction, layers: backend)


def test_the_fastest_wins(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    choice = measure(bundle, bundle.manifest.reduction, 0)
    assert (choice.backend, choice.precision) == ("openvino", "bf16")
    assert choice.row_ms == {"onnxruntime fp32": 4.0, "openvino fp32": 3.0, "openvino bf16": 2.0}
    assert str(choice).startswith("openvino bf16 is fastest here (onnxruntime fp32 4.0 ms, ")


@pytest.mark.parametrize(
    ("bf16", "reason"),
    [
        (Known("openvino bf16", label=1), "agrees with float32 in 0.0% only"),
        (Known("openvino bf16", kept_from=3), "agrees with float32 in 9"),
    ],
)
def test_one_that_answers_otherwise_is_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, bf16: Known, reason: str
) -> None:
    stand_in(monkeypatch, openvino_bf16=bf16)
    choice = measure(bundle, bundle.manifest.reduction, 0)
    assert (choice.backend, choice.precision) == ("openvino", "fp32")
    assert choice.refused["openvino bf16"].startswith(reason)


@pytest.mark.parametrize(
    "problem", [MissingDependencyError("it", "openvino", "openvino"), ConfigError("no bfloat16")]
)
def test_what_does_not_run_here_is_left_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    stand_in(monkeypatch, openvino_bf16=problem, openvino_fp32=problem)
    choice = measure(bundle, bundle.manifest.reduction, 0)
    assert choice == Choice("onnxruntime", "fp32", {"onnxruntime fp32": 4.0}, {})


def test_a_choice_is_remembered_as_long_as_it_holds(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    reduction = bundle.manifest.reduction
    first = choose_backend(bundle, reduction)
    stand_in(monkeypatch, openvino_bf16=ConfigError("measured again"))
    assert choose_backend(bundle, reduction) == first
    monkeypatch.setattr(cached, "processor", lambda: "another")
    again = choose_backend(bundle, reduction)
    assert again.precision == "fp32" != first.precision
    (file,) = cache.glob("*/*.json")
    assert json.loads(file.read_text())["key"]["processor"] == "another"
    for changed in ((bundle, reduction.at_threshold(0.25), 0), (bundle, reduction, 1)):
        stand_in(monkeypatch)
        assert choose_backend(*changed).precision == "bf16"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": 1, "found": 2}'])
def test_a_damaged_file_is_made_again(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    stand_in(monkeypatch)
    first = choose_backend(bundle, bundle.manifest.reduction)
    (file,) = cache.glob("*/*.json")
    file.write_text(content)
    assert choose_backend(bundle, bundle.manifest.reduction) == first
    assert "found" in json.loads(file.read_text())


def test_without_a_place_to_remember_in_it_still_answers(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    cache.write_text("a file where the directory would be")
    assert choose_backend(bundle, bundle.manifest.reduction).precision == "bf16"


def test_real_backends_are_measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    pipeline = load(tiny_bundle, "auto", threads=1, note=said.append)
    description = pipeline.chain.backend.description
    line, of_short_texts = said
    assert "faster dense here" in of_short_texts
    assert line.startswith(f"{description['backend']} {description['precision']} is fastest here")
    assert "onnxruntime fp32 " in line and "openvino fp32 " in line
    assert isinstance(pipeline.chain, Chain)
    assert pipeline(["a wonderful film"])[0].label
    with pytest.raises(ConfigError, match="auto cannot be asked for fp32: expected none"):
        load(tiny_bundle, "auto", precision="fp32")


def test_the_commands_say_what_was_chosen(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a film", "label": "good"}\n{"text": "a house", "label": "bad"}\n')
    for arguments in (
        ["predict", str(tiny_bundle), "--text", "a film"],
        ["evaluate", str(tiny_bundle), "--teacher", str(tiny_bundle), "--data", str(data)],
        ["bench", str(tiny_bundle), "--lengths", "16", "--rounds", "1"],
    ):
        monkeypatch.setattr("sys.argv", ["trbert-deploy", *arguments, "--backend", "auto"])
        main()
        output = capfd.readouterr()
        assert "is fastest here (onnxruntime fp32" in (output.out + output.err).replace("\n", " ")
