"""A checkpoint's tokenizer: a tokenizer.json that gives the ids of transformers' AutoTokenizer.

The runtime reads tokenizer.json alone. transformers does not: a class such as BertTokenizer takes
the vocabulary from it and builds normalizer and template anew, from tokenizer_config.json and its
own defaults. So the file is used as it is where both come to the same, and written anew from what
transformers made where they do not, or where the checkpoint has only older vocabulary files.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from tokenizers import Tokenizer

from trbert_deploy.errors import CheckpointError, first_line
from trbert_deploy.files import read_json, write_json
from trbert_deploy.modeling.checkpoints.checkpoint_files import settled
from trbert_deploy.modeling.checkpoints.sources import CONFIG_FILE
from trbert_deploy.modeling.checkpoints.tokenizer_files import (
    LONGEST_ROW,
    SETTINGS_FILES,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
)
from trbert_deploy.modeling.checkpoints.tokenizer_loading import load_tokenizer
from trbert_deploy.modeling.checkpoints.unigram_scores import save_exactly
from trbert_deploy.runtime.tokenizing import spelling_of
from trbert_deploy.tasks.spelling import Spelling

_NO_FIXED_LENGTH = 512  # a truncation has to name a length; whoever reads the file sets another


def tokenizer_directory(model: str, scratch: Path) -> Path:
    """A directory with the tokenizer's files of ``model``, tokenizer.json among them.

    Args:
        model: a directory or a hub name.
        scratch: an empty directory, which is used where tokenizer.json has to be written.

    Raises:
        CheckpointError: there is no tokenizer, one that tokenizer.json cannot express, or a
            package that its conversion needs is missing.
    """
    source = Path(settled(model)) if Path(model).is_dir() else _download(model)
    tokenizer = load_tokenizer(source, model)
    if (
        (source / TOKENIZER_FILE).is_file()
        and _behaviour_of_file(source / TOKENIZER_FILE) == _behaviour_of(tokenizer)
        and not _class_in_model_config(source)
    ):
        return source
    _convert(tokenizer, model, source, scratch)
    return scratch


def spelling_of_source(model: str) -> Spelling:
    """How the tokenizer of ``model`` writes words, and masks them.

    Args:
        model: a directory or a hub name.

    Raises:
        CheckpointError: as ``tokenizer_directory``.
    """
    source = Path(settled(model)) if Path(model).is_dir() else _download(model)
    tokenizer = load_tokenizer(source, model)
    return replace(spelling_of(tokenizer.backend_tokenizer), mask=tokenizer.mask_token_id)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files; tokenizer.json must be among them.

    Raises:
        CheckpointError: it is not.
    """
    if not (source / TOKENIZER_FILE).is_file():
        raise CheckpointError(
            f"{source} has no {TOKENIZER_FILE}: the runtime reads that format; save the tokenizer "
            "again with a fast tokenizer of transformers"
        )
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def allow_length(directory: Path, max_length: int) -> None:
    """Let the tokenizer of ``directory`` give rows of ``max_length`` tokens.

    Positions may have been added since its configuration was written, and transformers cuts texts
    by what stands there.
    """
    path = directory / SETTINGS_FILES[0]
    described = read_json(path, CheckpointError) if path.is_file() else {}
    stated = described.get(LONGEST_ROW)
    if isinstance(stated, int | float) and stated < max_length:
        write_json(path, {**described, LONGEST_ROW: max_length})


def _download(model: str) -> Path:
    """The hub's files, as far as they belong to the tokenizer or choose its class."""
    try:
        return Path(snapshot_download(model, allow_patterns=[*TOKENIZER_FILES, CONFIG_FILE]))
    except Exception as problem:  # noqa: BLE001 - the hub's, and those of its HTTP library
        raise CheckpointError(
            f"{model} is no directory here, and its tokenizer cannot be had from the hub: "
            f"{first_line(problem)}"
        ) from None


def _behaviour_of_file(path: Path) -> dict[str, Any]:
    """What decides the ids that a tokenizer.json gives where it is read as it is."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as problem:  # noqa: BLE001 - the library raises plain Exception
        raise CheckpointError(f"{path} is not readable: {first_line(problem)}") from None
    return _behaviour(tokenizer, (tokenizer.truncation or {}).get("direction", "right"))


def _behaviour_of(tokenizer: Any) -> dict[str, Any]:
    """What decides the ids that a tokenizer of transformers gives."""
    return _behaviour(tokenizer.backend_tokenizer, tokenizer.truncation_side)


def _behaviour(tokenizer: Tokenizer, truncation_side: str) -> dict[str, Any]:
    """What decides ids; padding and the length are the caller's to set."""
    described = json.loads(tokenizer.to_str())
    return {**described, "padding": None, "truncation": truncation_side}


def _class_in_model_config(source: Path) -> str | None:
    """The tokenizer's class where config.json alone names it, which does not travel."""
    names: list[str | None] = []
    for name in (SETTINGS_FILES[0], CONFIG_FILE):
        path = source / name
        described = read_json(path, CheckpointError) if path.is_file() else {}
        names.append(described.get("tokenizer_class"))
    return names[1] if names[0] is None else None


def _convert(tokenizer: Any, model: str, source: Path, scratch: Path) -> None:
    """Write the tokenizer into ``scratch`` so that transformers reads it as it does ``source``.

    Raises:
        CheckpointError: it cannot be written so.
    """
    expected = _behaviour_of(tokenizer)
    for name in (*TOKENIZER_FILES, CONFIG_FILE):  # the configuration may choose the class
        if (source / name).is_file():
            shutil.copyfile(source / name, scratch / name)
    if (class_name := _class_in_model_config(source)) is not None:
        settings = scratch / SETTINGS_FILES[0]
        described = read_json(settings, CheckpointError) if settings.is_file() else {}
        write_json(settings, {**described, "tokenizer_class": class_name})
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    if tokenizer.truncation_side == "left":
        backend.enable_truncation(_NO_FIXED_LENGTH, direction="left")
    else:
        backend.no_truncation()
    save_exactly(backend, scratch / TOKENIZER_FILE)
    if _behaviour_of(load_tokenizer(scratch, model)) == expected:
        return
    # The checkpoint's own settings applied twice come to something else: write these anew, too.
    for name in SETTINGS_FILES:
        (scratch / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(scratch)
    save_exactly(backend, scratch / TOKENIZER_FILE)
    if _behaviour_of(load_tokenizer(scratch, model)) != expected:
        raise CheckpointError(
            f"{model} has a tokenizer of the class {type(tokenizer).__name__} that transformers "
            f"reads otherwise once it is saved as {TOKENIZER_FILE}: save it with transformers "
            "until it stays the same, and give that directory"
        )
