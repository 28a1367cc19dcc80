"""Checkpoints as transformers and PyTorch write them, and damaged ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertModel
from transformers.utils import logging

from trbert_deploy.errors import CheckpointError, StorageError
from trbert_deploy.modeling.checkpoints import sources
from trbert_deploy.modeling.checkpoints.tensors import read_tensors
from trbert_deploy.modeling.checkpoints.weight_files import write_safetensors

State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def tiny_bert() -> BertModel:
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
        )
    )


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.float()), name
        assert found[name].is_contiguous() and found[name].dtype == torch.float32


def parameters(model: torch.nn.Module) -> State:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def split(state: State, path: Path, suffix: str) -> dict[str, str]:
    """Write two shards and their index; returns the index's weight_map."""
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = sorted(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{stem}-{number:05}-of-00002{suffix}"
        weight_map.update(dict.fromkeys(part, shard))
        tensors = {name: state[name] for name in part}
        if suffix == ".bin":
            torch.save(tensors, path / shard)
        else:
            save_file(tensors, path / shard)
    (path / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_transformers_saves_is_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_bert().to(dtype)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert_same(read_tensors(str(tmp_path)), parameters(model))


def test_shards_that_transformers_saves_are_read(tmp_path: Path) -> None:
    model = tiny_bert()
    model.save_pretrained(tmp_path, max_shard_size="6KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same(read_tensors(str(tmp_path)), parameters(model))


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_pickles_are_read(tmp_path: Path, archive: bool) -> None:
    state = {name: tensor.half() for name, tensor in parameters(tiny_bert()).items()}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=archive)
    assert_same(read_tensors(str(tmp_path)), state)


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_shards_are_read(tmp_path: Path, suffix: str) -> None:
    state = parameters(tiny_bert())
    split(state, tmp_path, suffix)
    assert_same(read_tensors(str(tmp_path)), state)


def test_buffers_of_integers_keep_their_type(tmp_path: Path) -> None:
    state = {"embeddings.position_ids": torch.arange(4), "mask": torch.ones(2, dtype=torch.bool)}
    save_file(state, tmp_path / "model.safetensors")
    found = read_tensors(str(tmp_path))
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "embeddings.position_ids": torch.int64,
        "mask": torch.bool,
    }


def test_tied_transposed_and_trained_tensors_come_out_plain(tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.randn(4, 3))
    state = {"table": table, "decoder": table, "transposed": table.T, "row": table[1]}
    torch.save(state, tmp_path / "pytorch_model.bin")
    found = read_tensors(str(tmp_path))
    assert_same(found, {name: tensor.detach() for name, tensor in state.items()})
    assert not any(tensor.requires_grad for tensor in found.values())
    found["table"][:] = 0
    assert torch.equal(found["decoder"], table.detach())
    write_safetensors(tmp_path / "model.safetensors", found)  # which refuses shared memory


def test_a_model_with_tied_weights_is_read_as_its_file_has_it(tmp_path: Path) -> None:
    model = BertForMaskedLM(tiny_bert().config)
    model.save_pretrained(tmp_path)
    assert_same(read_tensors(str(tmp_path)), parameters(model))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert "cls.predictions.decoder.weight" in read_tensors(str(tmp_path))


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(StorageError, match="is a file"):
        read_tensors(str(tmp_path / "model.safetensors"))


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    assert "has weights without a tensor" in refused(tmp_path)


def test_an_adapter_is_refused_even_beside_a_model(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    assert "is a PEFT adapter" in refused(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    state = {"fine": torch.zeros(2), "diverged": torch.tensor([0.0, bad]).half()}
    save_file(state, tmp_path / "model.safetensors")
    assert "tensor diverged has values that are NaN or infinite" in refused(tmp_path)


def test_doubles_beyond_float32_are_refused(tmp_path: Path) -> None:
    save_file({"far": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "model.safetensors")
    assert "tensor far has values that are NaN or infinite" in refused(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2, 2, dtype=torch.int8), "int8"),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.ones(2, 2, dtype=torch.complex64), "complex64"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
    ],
)
def test_quantized_and_other_tensors_are_refused(
    tmp_path: Path, tensor: torch.Tensor, kind: str
) -> None:
    torch.save({"query.weight": tensor}, tmp_path / "pytorch_model.bin")
    assert f"tensor query.weight is {kind}: expected float32" in refused(tmp_path)


def test_what_is_no_tensor_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "pytorch_model.bin")
    assert "has int under the name epoch: expected tensors only" in refused(tmp_path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing tensor", "lacks the tensor new.weight: expected what the index says"),
        ("further tensor", "holds a further tensor, embeddings.LayerNorm.bias: expected"),
        ("truncated", "is damaged or truncated"),
    ],
)
def test_shards_that_are_not_what_the_index_says_are_refused(
    tmp_path: Path, what: str, message: str
) -> None:
    weight_map = split(parameters(tiny_bert()), tmp_path, ".safetensors")
    first = min(weight_map)
    shard = tmp_path / weight_map[first]
    match what:
        case "missing tensor":
            weight_map["new.weight"] = shard.name
        case "further tensor":
            del weight_map[first]
        case "truncated":
            shard.write_bytes(shard.read_bytes()[:-10])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert message in refused(tmp_path)


def test_a_hub_name_is_read_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = parameters(tiny_bert())
    split(state, tmp_path, ".bin")

    def download(repository: str, name: str, *, local_files_only: bool) -> str:
        if not (tmp_path / name).is_file():
            raise sources.LocalEntryNotFoundError("not in the cache\nsecond line")
        return str(tmp_path / name)

    monkeypatch.setattr(sources, "hf_hub_download", download)
    assert_same(read_tensors("someone/model"), state)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="is no directory here, and from the hub it cannot"):
        read_tensors("someone/model")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"^someone/model is a PEFT adapter"):
        read_tensors("someone/model")


def test_offline_a_hub_name_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "someone/no-such-model is no directory here" in refused(Path("someone/no-such-model"))
