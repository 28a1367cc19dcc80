"""The repository on disk: what is in it, and what it may replace."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from click.testing import CliRunner
from commands_in_tests import run
from conftest import tiny_spec
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import ModelConfig

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.cli import cli
from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import BundleError, ConfigError, StorageError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.serving.triton.config import config_text
from trbert_deploy.serving.triton.repository import write_repository
from trbert_deploy.serving.triton.settings import Loading, Settings
from trbert_deploy.tasks.registry import task_of


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def config_of(spec: EncoderSpec, settings: Settings = Settings()) -> dict[str, Any]:
    """A model's config.pbtxt, as the server's own parser has it."""
    parsed = text_format.Parse(config_text("m", task_of(spec), settings), ModelConfig())
    return MessageToDict(parsed, preserving_proto_field_name=True)


def test_the_command_writes_all_that_the_server_needs(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "my models"
    told = run("triton-repo", tiny_bundle, out, "--threads", 2, "--no-truncate")
    assert told == f"bundle: tritonserver --model-repository '{out}'\n"
    found = files_of(out)
    model = {name for name in found if not name.startswith("bundle/1/bundle/")}
    assert model == {"README.md", "bundle/config.pbtxt", "bundle/1/model.py"}
    copied = Bundle.open(out / "bundle" / "1" / "bundle")
    assert copied.manifest == Bundle.open(tiny_bundle).manifest
    text = found["bundle/config.pbtxt"].decode()
    config = text_format.Parse(text, ModelConfig())
    assert config.name == "bundle" and config.backend == "python"
    parameters = {name: each.string_value for name, each in config.parameters.items()}
    assert Loading.of(parameters) == Loading(threads=2, truncate=False)
    readme = found["README.md"].decode()
    assert "pip install 'trbert-deploy[cpu]'" in readme and "`scores` TYPE_FP32 [N, 2]" in readme


def test_a_configuration_says_tensors_batches_and_instances() -> None:
    settings = Settings(Loading("openvino", "bf16", 1, 0.5), 3, 16, 250)
    config = config_of(tiny_spec(labels=("a", "b", "c")), settings)
    string = {"data_type": "TYPE_STRING", "dims": ["1"]}
    assert config["input"] == [
        {"name": "text", **string},
        {"name": "text_pair", **string, "optional": True},
    ]
    assert config["output"] == [
        {"name": "answer", **string},
        {"name": "scores", "data_type": "TYPE_FP32", "dims": ["3"]},
    ]
    assert config["max_batch_size"] == 16
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": "250"}
    assert config["instance_group"] == [{"count": 3, "kind": "KIND_CPU"}]
    parameters = {name: each["string_value"] for name, each in config["parameters"].items()}
    assert Loading.of(parameters) == settings.loading


@pytest.mark.parametrize(
    ("task", "labels", "inputs", "outputs"),
    [
        ("text-ranking", ("LABEL_0",), {"text", "text_pair"}, {"answer": "1", "scores": "1"}),
        ("multiple-choice", ("LABEL_0",), {"text", "text_pair"}, {"answer": "1", "scores": "1"}),
        ("feature-extraction", (), {"text"}, {"answer": "1", "embedding": "32"}),
        ("token-classification", ("O", "I"), {"text"}, {"answer": "1"}),
        ("question-answering", ("a", "b"), {"text", "text_pair"}, {"answer": "1"}),
    ],
)
def test_every_task_has_its_tensors(
    task: str, labels: tuple[str, ...], inputs: set[str], outputs: dict[str, str]
) -> None:
    config = config_of(tiny_spec(task=task, labels=labels))
    assert {each["name"] for each in config["input"]} == inputs
    assert {each["name"]: each["dims"][0] for each in config["output"]} == outputs


@pytest.mark.parametrize(
    ("backend", "kind"),
    [("tensorrt", "KIND_GPU"), ("torch", "KIND_CPU"), ("onnxruntime", None), ("auto", None)],
)
def test_instances_are_where_the_backend_runs(backend: str, kind: str | None) -> None:
    (group,) = config_of(tiny_spec(), Settings(Loading(backend)))["instance_group"]
    assert group.get("kind") == kind  # KIND_AUTO is the parser's default


def test_engines_are_copied_without_what_a_killed_writer_left(
    own_bundle: Path, tmp_path: Path
) -> None:
    for name in ("rtx-fp16", ".trbert-staging-0"):
        (own_bundle / "engines" / name).mkdir(parents=True)
        (own_bundle / "engines" / name / "engine.bin").write_bytes(b"1")
    (own_bundle / "notes.txt").write_text("no part of the bundle")
    write_repository(own_bundle, tmp_path / "out")
    copied = tmp_path / "out" / "bundle" / "1" / "bundle"
    assert {path.name for path in (copied / "engines").iterdir()} == {"rtx-fp16"}
    assert not (copied / "notes.txt").exists()


def test_an_older_repository_of_the_model_is_replaced(own_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_repository(own_bundle, out, "labels")
    (out / "labels" / "1" / "__pycache__").mkdir()  # the server leaves it there
    number = out.stat().st_ino
    write_repository(own_bundle, out, "labels", Settings(max_batch_size=7))
    assert out.stat().st_ino != number
    assert "max_batch_size: 7" in (out / "labels" / "config.pbtxt").read_text()
    assert not (out / "labels" / "1" / "__pycache__").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "out"}


@pytest.mark.parametrize("added", ["notes.txt", "other/config.pbtxt", "m/2/model.py", "m/1/x.py"])
def test_what_is_more_than_the_model_is_not_replaced(
    tiny_bundle: Path, tmp_path: Path, added: str
) -> None:
    out = tmp_path / "out"
    write_repository(tiny_bundle, out, "m")
    (out / added).parent.mkdir(parents=True, exist_ok=True)
    (out / added).write_text("mine")
    before = files_of(out)
    with pytest.raises(ConfigError, match="is no repository of the model m alone: choose another"):
        write_repository(tiny_bundle, out, "m")
    assert files_of(out) == before


def test_another_model_is_not_replaced(tiny_bundle: Path, tmp_path: Path) -> None:
    write_repository(tiny_bundle, tmp_path / "out", "m")
    with pytest.raises(ConfigError, match="no repository of the model n alone"):
        write_repository(tiny_bundle, tmp_path / "out", "n")


def test_other_folders_and_files_are_refused(own_bundle: Path, tmp_path: Path) -> None:
    before = files_of(own_bundle)
    with pytest.raises(ConfigError, match="exists and is no repository"):
        write_repository(own_bundle, own_bundle)
    assert files_of(own_bundle) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="is a file: expected a directory"):
        write_repository(own_bundle, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    write_repository(own_bundle, tmp_path / "empty")
    assert (tmp_path / "empty" / "README.md").is_file()


@pytest.mark.parametrize("name", ["", "a b", ".hidden", "../up", "é", "a/b", "m\n"])
def test_names_that_are_none_are_refused(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="expected ASCII letters"):
        write_repository(tiny_bundle, tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_a_damaged_bundle_leaves_the_old_repository(own_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_repository(own_bundle, out)
    before = files_of(out)
    weights = own_bundle / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match="was altered or truncated"):
        write_repository(own_bundle, out)
    assert files_of(out) == before
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "out"}
    shutil.rmtree(own_bundle)
    with pytest.raises(StorageError, match="does not exist: make one with trbert-deploy export"):
        write_repository(own_bundle, out)


def test_a_bundle_that_is_replaced_meanwhile_is_copied_whole(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = Path(shutil.copytree(own_bundle, tmp_path / "new"))
    copied, copyfile = [], shutil.copyfile

    def replaced(source: Path, target: Path) -> Path:
        if len(copied) == 2:
            own_bundle.rename(tmp_path / "old")
            new.rename(own_bundle)
        copied.append(source.name)
        return copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", replaced)
    write_repository(own_bundle, tmp_path / "out")
    assert copied.count("manifest.json") == 2  # begun anew
    Bundle.open(tmp_path / "out" / "bundle" / "1" / "bundle")


def test_the_command_says_what_is_wrong_in_a_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["triton-repo", str(tmp_path / "none"), str(tmp_path / "out")])
    assert isinstance(result.exception, StorageError)
    assert re.match(r"bundle .* does not exist", str(result.exception))


def test_the_whole_chain_is_served_without_python(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no graph of its whole chain: export it with --fused"):
        write_repository(tiny_bundle, tmp_path / "out", fused=True)
    assert not (tmp_path / "out").exists()


def test_a_graph_has_its_tensors_in_the_configuration(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    export_bundle(tiny_checkpoint, bundle, fused=True)
    assert run("triton-repo", bundle, out, "--fused", "--name", "labels").startswith("labels: ")
    assert {*files_of(out)} == {
        "README.md",
        "labels/config.pbtxt",
        "labels/1/model.onnx",
        "labels/1/weights.safetensors",
    }
    text = (out / "labels" / "config.pbtxt").read_text()
    config = MessageToDict(text_format.Parse(text, ModelConfig()), preserving_proto_field_name=True)
    assert config["backend"] == "onnxruntime" and config["max_batch_size"] == 64
    session = onnxruntime.InferenceSession(str(out / "labels" / "1" / "model.onnx"))
    for ours, theirs in (
        (config["input"], session.get_inputs()),
        (config["output"], session.get_outputs()),
    ):
        assert [each["name"] for each in ours] == [each.name for each in theirs]
        for one, other in zip(ours, theirs, strict=True):
            sizes = [-1 if isinstance(size, str) else size for size in other.shape[1:]]
            assert [int(size) for size in one["dims"]] == sizes
            kind = {"tensor(int64)": "INT64", "tensor(bool)": "BOOL", "tensor(float)": "FP32"}
            assert one["data_type"] == f"TYPE_{kind[other.type]}"
    told = (out / "README.md").read_text()
    assert "`logits` float32 [B, 2]" in told and "`survivors_1` int64 [B, K1]" in told
    # It is replaced by one of the other kind, and that by it.
    for options in ((), ("--fused",)):
        run("triton-repo", bundle, out, "--name", "labels", *options)
    assert (out / "labels" / "1" / "model.onnx").is_file()


def test_what_a_graph_cannot_be_told_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["triton-repo", str(tiny_bundle), str(out), "--fused", "--threads", "2"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2 and "serves the graph as it was exported" in result.output
