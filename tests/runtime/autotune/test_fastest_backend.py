"""The fastest backend: chosen among those that answer alike, and remembered where it holds."""

from __future__ import annotations

import re
from itertools import cycle
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.cli import main
from trbert_deploy.errors import (
    BundleError,
    ConfigError,
    DeviceError,
    EngineError,
    LengthError,
    MissingDependencyError,
    TrbertError,
)
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.autotune import conditions, fastest_backend
from trbert_deploy.runtime.autotune.fastest_backend import (
    Candidate,
    Choice,
    candidates,
    choose_backend,
    measure,
)
from trbert_deploy.runtime.backends import onnxruntime_package
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.onnxruntime_package import CPU, CUDA
from trbert_deploy.runtime.backends.registry import BACKENDS, BackendInfo
from trbert_deploy.runtime.chain import Chain, Timing
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.token_state import RowResult, TokenRow

pytestmark = pytest.mark.usefixtures("cache")

SECONDS = {
    "onnxruntime fp32": 0.004,
    "openvino fp32": 0.003,
    "openvino bf16": 0.002,
    "tensorrt fp16": 0.001,
}
MISSING = MissingDependencyError("it", "package", "extra")
NO_INT8 = ConfigError("no 8-bit weights")


def silent(message: str) -> None:
    pass


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


class Failing(Known):
    """One that opens and cannot run."""

    def __init__(self, problem: TrbertError) -> None:
        self.problem = problem

    def run(self, rows: list[TokenRow], timing: Timing | None = None) -> list[RowResult]:
        raise self.problem


class Uneven(Known):
    """Takes the times of a list in turns, those of the first, unmeasured call left out."""

    def __init__(self, seconds: list[float]) -> None:
        self.kept_from = self.label = 0
        self.times = cycle(seconds)

    def run(self, rows: list[TokenRow], timing: Timing | None = None) -> list[RowResult]:
        self.seconds = 0.0 if timing is None else next(self.times)
        return super().run(rows, timing)


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def stand_in(monkeypatch: pytest.MonkeyPatch, **changed: Known | Exception) -> None:
    """Let the candidates be ``Known`` chains; ``changed`` by name with _ for the space."""

    def open_backend(name: str, bundle: Bundle, options: BackendOptions) -> object:
        full = f"{name} {options.precision}"
        on_gpus = name in ("tensorrt", "cuda")
        missing = MISSING if on_gpus else NO_INT8
        default = Known(full) if full in SECONDS and not on_gpus else missing
        chain = changed.get(full.replace(" ", "_"), default)
        if isinstance(chain, Exception):
            raise chain
        return chain

    monkeypatch.setattr(fastest_backend, "open_backend", open_backend)
    monkeypatch.setattr(fastest_backend, "Chain", lambda backend, *_, **_options: backend)


def test_what_is_tried_is_what_the_registry_says() -> None:
    names = [str(candidate) for candidate in candidates()]
    assert names == [
        "onnxruntime fp32", "onnxruntime int8", "openvino fp32", "openvino bf16", "openvino int8",
        "tensorrt fp16", "tensorrt bf16", "tensorrt fp32", "cuda fp16", "cuda bf16", "cuda fp32",
    ]  # fmt: skip
    without = [name for name in names if not name.startswith("tensorrt")]
    assert [str(each) for each in candidates(engines=False)] == without


def test_half_precision_of_onnxruntime_is_tried_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it runs on CUDA, and not where it is installed for GPUs and runs on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    for reason, tried in ((None, True), ("no CUDA-capable device is detected", False)):
        monkeypatch.setattr(onnxruntime_package, "_why_no_cuda", lambda reason=reason: reason)
        assert (Candidate("onnxruntime", "fp16") in candidates()) == tried
    monkeypatch.setattr(onnxruntime_package, "DISTRIBUTIONS", ("numpy", "onnx"))
    monkeypatch.setattr(onnxruntime_package, "_why_no_cuda", lambda: None)
    assert Candidate("onnxruntime", "fp16") not in candidates()  # of two packages none is whole


def test_a_backend_from_outside_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "mine", BackendInfo("my_module", ("mine",), auto=True))
    assert str(candidates()[-1]) == "mine"


def test_the_fastest_wins(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    steps: list[str] = []
    choice = measure(
        bundle,
        bundle.manifest.reduction,
        0,
        progress=lambda step, done, total: steps.append(f"{step} {done}/{total}"),
    )
    assert steps[0] == "try onnxruntime fp32 0/11"
    assert "measure backends 0/10" in steps and steps[-1] == "measure backends 10/10"
    assert (choice.backend, choice.precision) == ("openvino", "bf16")
    assert choice.row_ms == {"onnxruntime fp32": 4.0, "openvino fp32": 3.0, "openvino bf16": 2.0}
    assert str(choice) == (
        "openvino bf16 is fastest here (onnxruntime fp32 4.0 ms, openvino fp32 3.0 ms, "
        "openvino bf16 2.0 ms a text); not tried: onnxruntime int8, openvino int8 "
        "(no 8-bit weights), tensorrt fp16, tensorrt bf16, tensorrt fp32, cuda fp16, cuda bf16, "
        "cuda fp32 (not installed)"
    )


def test_a_time_is_the_mean_of_medians(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of one length (the tiny bundle takes no more): 1 ms and 5 ms, and a slow round."""
    assert bundle.manifest.max_length == 64 and fastest_backend.ROUNDS == 5
    slow_once = [0.001, 0.005, 0.001, 0.005, 9.0, 9.0, 0.001, 0.005, 0.001, 0.005]
    stand_in(monkeypatch, onnxruntime_fp32=Uneven(slow_once))
    choice = measure(bundle, bundle.manifest.reduction, 0)
    assert choice.row_ms["onnxruntime fp32"] == 3.0


def test_engines_that_fit_are_chosen(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    no_set = EngineError("no engines of fp32")
    stand_in(monkeypatch, tensorrt_fp16=Known("tensorrt fp16"), tensorrt_fp32=no_set)
    reduction = bundle.manifest.reduction
    choice = choose_backend(bundle, reduction, 0, silent)
    assert (choice.backend, choice.precision) == ("tensorrt", "fp16")
    assert choice.skipped["tensorrt fp32"] == "no engines of fp32"
    without = choose_backend(bundle, reduction, 0, silent, engines=False)
    assert without.backend == "openvino"
    assert not any("tensorrt" in name for name in {**without.row_ms, **without.skipped})


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
    assert f"; refused: openvino bf16 ({reason}" in str(choice)


def test_the_first_in_float32_that_runs_is_the_reference(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8-bit weights are no reference, though they come before OpenVINO."""
    other = Known("onnxruntime fp32", label=1)
    stand_in(monkeypatch, onnxruntime_fp32=DeviceError("none answers"), onnxruntime_int8=other)
    choice = measure(bundle, bundle.manifest.reduction, 0)
    assert set(choice.refused) == {"onnxruntime int8"}
    assert choice.precision == "bf16"


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (MissingDependencyError("it", "openvino", "openvino"), "not installed"),
        (ConfigError("no bfloat16"), "no bfloat16"),
        (BundleError("cannot load\nthe graph"), "cannot load"),
        (EngineError("built for another"), "built for another"),
        (DeviceError("no GPU answers"), "no GPU answers"),
        (Failing(LengthError("no profile takes 64 tokens")), "no profile takes 64 tokens"),
    ],
)
def test_what_does_not_run_here_is_left_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, problem: Failing | Exception, said: str
) -> None:
    stand_in(monkeypatch, openvino_bf16=problem, openvino_fp32=problem)
    choice = measure(bundle, bundle.manifest.reduction, 0)
    skipped = {
        "onnxruntime int8": "no 8-bit weights",
        "openvino fp32": said,
        "openvino bf16": said,
        "openvino int8": "no 8-bit weights",
        **{
            f"{name} {precision}": "not installed"
            for name in ("tensorrt", "cuda")
            for precision in ("fp16", "bf16", "fp32")
        },
    }
    assert choice == Choice("onnxruntime", "fp32", {"onnxruntime fp32": 4.0}, {}, skipped)


def test_a_fault_of_ours_is_no_reason_to_leave_one_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, openvino_fp32=AttributeError("a bug"))
    with pytest.raises(AttributeError, match="a bug"):
        measure(bundle, bundle.manifest.reduction, 0)


def test_without_float32_there_is_no_choice(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = MissingDependencyError("backend onnxruntime", "onnxruntime", "cpu", "gpu")
    stand_in(
        monkeypatch,
        onnxruntime_fp32=first,
        openvino_fp32=MISSING,
        tensorrt_fp16=Known("tensorrt fp16"),
    )
    with pytest.raises(MissingDependencyError, match=r"trbert-deploy\[cpu\]' or .*\[gpu\]"):
        choose_backend(bundle, bundle.manifest.reduction, 0, silent)
    assert not list(cache.glob("*/*.json"))


def test_a_choice_is_remembered_for_each_condition(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduction = bundle.manifest.reduction
    others = ((bundle, reduction.at_threshold(0.25), 0), (bundle, reduction, 1))
    stand_in(monkeypatch)
    first = choose_backend(bundle, reduction, 0, silent)
    stand_in(monkeypatch, openvino_bf16=ConfigError("measured again"))
    for changed in others:
        assert choose_backend(*changed, silent).precision == "fp32"
    with monkeypatch.context() as patch:
        patch.setattr(conditions, "processor", lambda: "another")
        assert choose_backend(bundle, reduction, 0, silent).precision == "fp32"
    monkeypatch.setattr(fastest_backend, "open_backend", lambda *_: 1 / 0)
    said: list[str] = []
    assert choose_backend(bundle, reduction, 0, said.append) == first
    assert said == [str(first)]
    for changed in others:
        assert choose_backend(*changed, silent).precision == "fp32"
    assert len(list(cache.glob("*/*.json"))) == 4


def test_what_was_measured_on_random_tokens_says_so(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    export_bundle(tiny_checkpoint, tmp_path / "bundle", samples=False)
    bundle = Bundle.open(tmp_path / "bundle")
    for _ in range(2):  # measured, and remembered
        said: list[str] = []
        choice = choose_backend(bundle, bundle.manifest.reduction, 0, said.append)
        assert said == [f"{choice}; measured on random tokens, for the bundle has no sample texts"]


def test_real_backends_are_measured(tiny_bundle: Path) -> None:
    said: list[str] = []
    pipeline = load(tiny_bundle, "auto", threads=1, note=said.append)
    description = pipeline.chain.backend.description
    line, of_short_texts = said
    assert "faster dense here" in of_short_texts
    assert line.startswith(f"{description['backend']} {description['precision']} is fastest here")
    shown = {name: float(ms) for name, ms in re.findall(r"[(,] ?(\w+ \w+) ([\d.]+) ms", line)}
    assert {"onnxruntime fp32", "openvino fp32"} <= shown.keys()
    assert shown[f"{description['backend']} {description['precision']}"] == min(shown.values())
    assert "onnxruntime int8, openvino int8 (" in line  # of which the bundle has no weights
    assert "tensorrt fp16" in line
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
