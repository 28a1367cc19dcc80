"""PEFT adapters: directories with the change to a model, not a model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from trbert_deploy.errors import CheckpointError
from trbert_deploy.files import read_json
from trbert_deploy.modeling.checkpoints.weight_files import WHOLE_MODEL_FILES

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")

_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
}
_HEADS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")


def is_adapter(path: Path) -> bool:
    """Whether a directory is a PEFT adapter, be it beside the model that it changes."""
    if any((path / name).is_file() for name in ADAPTER_FILES):
        return True
    whole = any((path / name).is_file() for name in WHOLE_MODEL_FILES)
    return (path / ADAPTER_CONFIG).is_file() and not whole


def refuse_adapter(path: Path, where: str | None = None) -> None:
    """Refuse a directory that is a PEFT adapter; any other passes.

    Args:
        where: the adapter as the user named it, if it was not by ``path``.

    Raises:
        CheckpointError: an adapter, with the line that merges it into its model.
    """
    if not is_adapter(path):
        return
    where = where or str(path)
    config: dict[str, Any] = {}
    if (path / ADAPTER_CONFIG).is_file():
        config = read_json(path / ADAPTER_CONFIG, CheckpointError)
    base = str(config.get("base_model_name_or_path") or "BASE_MODEL")
    raise CheckpointError(
        f"{where} is a PEFT adapter of {base!r}, not a whole model: expected merged weights; merge "
        f"it with: {_merge_line(path, where, base, config)}"
    )


def _merge_line(path: Path, where: str, base: str, config: dict[str, Any]) -> str:
    """The shell line that writes the merged model and its tokenizer into ./merged."""
    auto_class = _auto_class(config)
    options = ""
    if "Classification" in auto_class and (labels := _labels(path)):
        options = f", num_labels={labels}"  # the base model does not know them
    # Quoted twice, for Python and the shell: the names come out of a file.
    named, adapter = json.dumps(base), json.dumps(where)
    code = (
        f"from peft import PeftModel; from transformers import {auto_class} as M, AutoTokenizer as "
        f"T; PeftModel.from_pretrained(M.from_pretrained({named}{options}), {adapter})"
        f'.merge_and_unload().save_pretrained("merged"); '
        f'T.from_pretrained({named}).save_pretrained("merged")'
    )
    return f"python -c {shlex.quote(code)}"


def _auto_class(config: dict[str, Any]) -> str:
    """The class of transformers that has the parameters which the adapter changes."""
    task = config.get("task_type")
    if task:
        return _CLASSES.get(str(task), "AutoModel")
    mapping = config.get("auto_mapping")
    base_class = str(mapping.get("base_model_class")) if isinstance(mapping, dict) else ""
    head = re.search(r"For[A-Z]\w*$", base_class)
    return f"AutoModel{head[0]}" if head else "AutoModel"


def _labels(path: Path) -> int | None:
    """The number of classes of the head that the adapter brings, if it can be read."""
    try:
        with safe_open(path / ADAPTER_FILES[0], framework="pt") as file:
            heads = [name for name in file.keys() if name.endswith(_HEADS)]  # noqa: SIM118
            return int(file.get_slice(heads[0]).get_shape()[0]) if heads else None
    except (OSError, SafetensorError):
        return None
