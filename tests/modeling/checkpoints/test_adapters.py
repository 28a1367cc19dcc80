"""PEFT adapters are told from models, and refused with the line that merges them."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.checkpoints.adapters import is_adapter, refuse_adapter

CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "bert-base-cased", "task_type": "SEQ_CLS"}
HEAD = {"base_model.model.classifier.weight": torch.zeros(3, 8)}


def adapter(path: Path, config: dict[str, object] | None, *files: str) -> Path:
    if config is not None:
        (path / "adapter_config.json").write_text(json.dumps(config))
    for name in files:
        save_file(HEAD, path / name)
    return path


def refused(path: Path, where: str | None = None) -> tuple[str, str]:
    """The message, and the Python code of its line."""
    with pytest.raises(CheckpointError) as caught:
        refuse_adapter(path, where)
    message = str(caught.value)
    assert "\n" not in message
    python, option, code = shlex.split(message.partition("merge it with: ")[2])
    assert (python, option) == ("python", "-c")
    ast.parse(code)
    return message, code


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("adapter_model.safetensors",), True),
        (("adapter_model.bin",), True),
        (("adapter_config.json",), True),
        (("adapter_config.json", "adapter_model.safetensors", "model.safetensors"), True),
        (("adapter_config.json", "model.safetensors"), False),
        (("adapter_config.json", "pytorch_model.bin.index.json"), False),
        (("config.json", "model.safetensors"), False),
        ((), False),
    ],
)
def test_adapters_are_told_from_models(
    tmp_path: Path, files: tuple[str, ...], expected: bool
) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    assert is_adapter(tmp_path) is expected
    if not expected:
        refuse_adapter(tmp_path)


def test_the_line_names_the_base_model_and_the_classes(tmp_path: Path) -> None:
    message, code = refused(adapter(tmp_path, CONFIG, "adapter_model.safetensors"))
    assert f"{tmp_path} is a PEFT adapter of 'bert-base-cased', not a whole model" in message
    assert 'M.from_pretrained("bert-base-cased", num_labels=3)' in code
    assert "AutoModelForSequenceClassification as M" in code
    assert f"{json.dumps(str(tmp_path))}).merge_and_unload().save_pretrained" in code


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task_type": "TOKEN_CLS"}, "AutoModelForTokenClassification as M"),
        ({"task_type": "FEATURE_EXTRACTION"}, "AutoModel as M"),
        ({"task_type": None}, "AutoModel as M"),
        (
            {"task_type": None, "auto_mapping": {"base_model_class": "BertForMaskedLM"}},
            "AutoModelForMaskedLM as M",
        ),
        (
            {"task_type": None, "auto_mapping": {"base_model_class": "BertForX; import os"}},
            "AutoModel as M",
        ),
    ],
)
def test_the_class_follows_the_task(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    _, code = refused(adapter(tmp_path, {**CONFIG, **changes}, "adapter_model.bin"))
    assert expected in code


def test_without_a_configuration_the_base_model_is_left_open(tmp_path: Path) -> None:
    message, _ = refused(adapter(tmp_path, None, "adapter_model.safetensors"))
    assert "adapter of 'BASE_MODEL'" in message


def test_a_hub_adapter_is_named_as_the_user_did(tmp_path: Path) -> None:
    message, code = refused(adapter(tmp_path, CONFIG), "someone/adapter")
    assert message.startswith("someone/adapter is a PEFT adapter")
    assert '"someone/adapter").merge_and_unload()' in code


@pytest.mark.parametrize("content", [b"", b"no safetensors at all"])
def test_an_unreadable_head_leaves_the_labels_out(tmp_path: Path, content: bytes) -> None:
    (adapter(tmp_path, CONFIG) / "adapter_model.safetensors").write_bytes(content)
    assert "num_labels" not in refused(tmp_path)[1]


def test_names_out_of_the_file_cannot_break_out_of_the_line(tmp_path: Path) -> None:
    evil = "a\"); import os; os.mkdir('b') #\n$(touch c)'; touch d"
    _, code = refused(adapter(tmp_path, {**CONFIG, "base_model_name_or_path": evil}))
    assert evil in [node.value for node in ast.walk(ast.parse(code)) if hasattr(node, "value")]


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json cannot be read as JSON"):
        refuse_adapter(tmp_path)
