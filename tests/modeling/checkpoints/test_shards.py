"""Which files a checkpoint's weights are in, and indexes that cannot be right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.checkpoints.shards import Part, find_parts
from trbert_deploy.modeling.checkpoints.sources import DirectorySource

INDEX = "model.safetensors.index.json"
SHARDS = ("model-1.safetensors", "model-2.safetensors")


def indexed(path: Path, weight_map: object, index: str = INDEX, files: tuple[str, ...] = SHARDS):
    for name in files:
        (path / name).touch()
    (path / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        find_parts(DirectorySource(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_index_gives_its_shards_and_their_tensors(tmp_path: Path) -> None:
    indexed(tmp_path, {"b": SHARDS[1], "a": SHARDS[0], "c": SHARDS[0]})
    assert find_parts(DirectorySource(tmp_path)) == [
        Part(tmp_path / SHARDS[0], frozenset({"a", "c"})),
        Part(tmp_path / SHARDS[1], frozenset({"b"})),
    ]


def test_safetensors_come_before_pickles_and_whole_files_before_shards(tmp_path: Path) -> None:
    def found() -> list[str]:
        return [part.path.name for part in find_parts(DirectorySource(tmp_path))]

    indexed(tmp_path, {"a": "shard.bin"}, "pytorch_model.bin.index.json", ("shard.bin",))
    assert found() == ["shard.bin"]
    (tmp_path / "pytorch_model.bin").touch()
    assert found() == ["pytorch_model.bin"]
    indexed(tmp_path, dict(zip("ab", SHARDS, strict=True)))
    assert found() == list(SHARDS)
    (tmp_path / "model.safetensors").touch()
    assert found() == ["model.safetensors"]


@pytest.mark.parametrize(
    "name",
    ["tf_model.h5", "flax_model.msgpack", "model.onnx", "onnx/model.onnx", "model-q4.gguf"],
)
def test_other_formats_are_named_with_those_that_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"weights")
    message = refused(tmp_path)
    assert f"found {name}, expected model.safetensors or pytorch_model.bin" in message
    assert "save_pretrained" in message


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "has no weights that can be read: found none, expected model.saf" in refused(tmp_path)
    for number in range(9):
        (tmp_path / f"{number}.onnx").touch()
    assert "found 0.onnx, 1.onnx, 2.onnx, 3.onnx and more, exp" in refused(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a": SHARDS[0], "b": "lost.safetensors"},
            "lacks the shard lost.safetensors, which model",
        ),
        ({"a": "../model-1.safetensors"}, "names the path '../model-1.safetensors': expected one"),
        ({"a": "/etc/model-1.safetensors"}, "names the path '/etc/model-1.safe"),
        ({"a": "shard.bin"}, "names the shard shard.bin: expected files of .safetensors"),
        ({"a": 3}, "names the path 3: expected"),
        ({}, "has no weight_map: expected the shard of each tensor"),
        (["a"], "has no weight_map"),
        (None, "has no weight_map"),
    ],
)
def test_indexes_that_cannot_be_right_are_refused(
    tmp_path: Path, weight_map: object, message: str
) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (tmp_path / SHARDS[0]).touch()
    indexed(path, weight_map)
    assert message in refused(path)


def test_an_index_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text("{")
    assert "cannot be read as JSON" in refused(tmp_path)
