"""Loads a checkpoint's tokenizer through transformers, and refuses what would come out wrong."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, TokenizersBackend

from trbert_deploy.errors import CheckpointError, first_line
from trbert_deploy.files import read_json
from trbert_deploy.modeling.checkpoints.sources import CONFIG_FILE
from trbert_deploy.modeling.checkpoints.tokenizer_files import (
    SENTENCEPIECE_FILES,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    VOCABULARIES,
)

_SUPPORTED = ", ".join((TOKENIZER_FILE, *(" with ".join(names) for names in VOCABULARIES)))


def _require_vocabulary(model: str, found: list[str]) -> None:
    """Refuse what transformers would make a tokenizer of a handful of tokens from, or none."""
    if TOKENIZER_FILE in found:
        return
    complete = [names for names in VOCABULARIES if set(names) <= set(found)]
    if not complete:
        raise CheckpointError(
            f"{model} has no tokenizer: found {', '.join(found) or 'none of its files'}, expected "
            f"one of {_SUPPORTED}; copy them from the model that it was fine-tuned from"
        )
    missing = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
    if missing and all(names[0] in SENTENCEPIECE_FILES for names in complete):
        packages = " ".join(name.removeprefix("google.") for name in missing)
        raise CheckpointError(
            f"{model} has its tokenizer as {complete[0][0]} alone, and turning that into "
            f"{TOKENIZER_FILE} needs a package that is not installed: run pip install {packages}"
        )


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it is a part of
        return False


def load_tokenizer(source: Path, model: str) -> Any:
    """The tokenizer of a directory as transformers reads it.

    Args:
        model: what errors call it.

    Raises:
        CheckpointError: there is none, transformers cannot read it or would read too little, a
            package is missing, or tokenizer.json cannot express it.
    """
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    _require_vocabulary(model, found)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(source), local_files_only=True, trust_remote_code=False
        )
    except Exception as problem:  # noqa: BLE001 - it raises whatever a damaged file provokes
        raise CheckpointError(
            f"{model} has no usable tokenizer: transformers cannot read {', '.join(found)} "
            f"({first_line(problem).rstrip(': ')}); is tokenizer_class in tokenizer_config.json, "
            "or model_type in config.json, the right one?"
        ) from None
    name = type(tokenizer).__name__
    if not isinstance(tokenizer, TokenizersBackend):
        raise CheckpointError(
            f"{model} has a tokenizer of the class {name}, which {TOKENIZER_FILE} cannot express: "
            "supported are WordPiece, BPE and Unigram tokenizers that transformers runs on the "
            "tokenizers package; choose a model with one of these"
        )
    needed = {
        file
        for kind, file in type(tokenizer).vocab_files_names.items()
        if kind != "tokenizer_file" and type(tokenizer) is not TokenizersBackend
    }
    if TOKENIZER_FILE not in found and not needed <= set(found):
        # transformers would go on with special tokens alone, or without merges.
        raise CheckpointError(
            f"{model} has a tokenizer of the class {name}, which reads "
            f"{' with '.join(sorted(needed))}: found {', '.join(found)}; correct tokenizer_class "
            f"in tokenizer_config.json, or add {TOKENIZER_FILE}"
        )
    if tokenizer.split_special_tokens:
        raise CheckpointError(
            f"{model} has split_special_tokens in tokenizer_config.json, which {TOKENIZER_FILE} "
            "cannot express: remove it if special tokens written out in texts may be read as such"
        )
    _require_known_tokens(source, model, tokenizer)
    return tokenizer


def _require_known_tokens(source: Path, model: str, tokenizer: Any) -> None:
    """Refuse special tokens around every text that the encoder has no embedding of."""
    path = source / CONFIG_FILE
    known = read_json(path, CheckpointError).get("vocab_size") if path.is_file() else None
    largest = max(tokenizer.backend_tokenizer.encode("", "").ids, default=-1)
    if isinstance(known, int) and largest >= known:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise CheckpointError(
            f"{model} has a tokenizer that puts {token} around texts, as number {largest}, and an "
            f"encoder of {known} tokens: they belong to different models; copy the tokenizer from "
            "the model that it was fine-tuned from"
        )
