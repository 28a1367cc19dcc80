"""What the modules of a sentence-transformers folder are set to, each in its own config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trbert_deploy.errors import CheckpointError
from trbert_deploy.files import read_json
from trbert_deploy.modeling.checkpoints.tokenizer_files import LONGEST_ROW
from trbert_deploy.tasks.feature_extraction import Pooling

TRANSFORMER_FILES = tuple(
    f"sentence_{family}_config.json"  # one for each class that once was, the last written first
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

_POOLINGS: dict[str, Pooling] = {"cls": "first", "mean": "mean", "max": "max"}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
#: What changes a Transformer's answers and is not computed here; absent or empty in most folders.
_UNSUPPORTED = ("query_length", "document_length", "query_expansion", "processing_kwargs")
_NO_LIMIT = 10**6  # transformers writes 1e30 for a tokenizer without a longest row


def read_pooling(file: Path, prompts: Mapping[str, str]) -> Pooling:
    """Which states make the embedding.

    Args:
        file: the configuration of a Pooling module.
        prompts: the texts before a text, whose tokens must be pooled with it.

    Raises:
        CheckpointError: missing or damaged, another pooling than ours, or several.
    """
    config = read_json(file, CheckpointError)
    modes = config.get("pooling_mode")
    if modes is None:  # to version 5.3: a flag for each, and the mean where none is set
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or str(modes[0]) not in _POOLINGS:
        raise CheckpointError(
            f"{file} has the pooling {_listed(modes)}: expected one of {', '.join(_POOLINGS)}"
        )
    if config.get("include_prompt") is False and any(prompts.values()):
        raise CheckpointError(
            f"{file} has include_prompt false, which leaves the tokens of its prompts out of the "
            "pooling: expected true"
        )
    return _POOLINGS[modes[0]]


def pooling_flags(pooling: Pooling) -> dict[str, bool]:
    """A pooling as a Pooling module's configuration has it."""
    return {flag: _POOLINGS.get(mode) == pooling for flag, mode in _FLAGS.items()}


def check_normalize(directory: Path) -> bool:
    """True, for a Normalize module of the embedding.

    Raises:
        CheckpointError: damaged, or it normalizes something else.
    """
    file = directory / "config.json"
    if file.is_file():  # since version 5.4
        config = read_json(file, CheckpointError)
        for key in ("module_input_name", "module_output_name"):
            name = config.get(key) or "sentence_embedding"
            if name != "sentence_embedding":
                raise CheckpointError(f"{file} has {key} {name!r}: expected 'sentence_embedding'")
    return True


def read_max_length(directory: Path) -> int | None:
    """The longest row of tokens that a Transformer module takes, if it has a limit of its own.

    Since version 5.4 the tokenizer's configuration says it alone.

    Raises:
        CheckpointError: a damaged configuration, or one that changes the answers in ways that are
            not supported.
    """
    files = [directory / name for name in TRANSFORMER_FILES if (directory / name).is_file()]
    config = read_json(files[0], CheckpointError) if files else {}
    task = config.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise CheckpointError(f"{files[0]} has the task {task!r}: expected 'feature-extraction'")
    for key in _UNSUPPORTED:
        if config.get(key):
            raise CheckpointError(
                f"{files[0]} has {key} {config[key]!r}: expected none, as it is not supported"
            )
    tokenizer_config = directory / "tokenizer_config.json"
    tokenizer = read_json(tokenizer_config, CheckpointError) if tokenizer_config.is_file() else {}
    if config.get("do_lower_case") and not _lowercases(directory / "tokenizer.json"):
        raise CheckpointError(
            f"{files[0]} has do_lower_case true, and its tokenizer.json does not lowercase: load "
            "and save the folder with sentence-transformers 5.4 or newer, which puts it there"
        )
    length = config.get("max_seq_length")
    if length is None:
        length = tokenizer.get(LONGEST_ROW)
        if not isinstance(length, int | float) or length > _NO_LIMIT:
            return None
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise CheckpointError(
            f"{directory} has the longest row {length!r}: expected a positive number of tokens"
        )
    return length


def _listed(modes: Any) -> str:
    return " and ".join(map(str, modes)) if isinstance(modes, list) and modes else repr(modes)


def _lowercases(tokenizer: Path) -> bool:
    """Whether the normalizer of a tokenizer.json makes lower case of a text."""
    normalizer = read_json(tokenizer, CheckpointError).get("normalizer")
    steps = [normalizer] if isinstance(normalizer, dict) else []
    steps = [step for top in steps for step in (top, *(top.get("normalizers") or ()))]
    return any(
        isinstance(step, dict) and (step.get("lowercase") or step.get("type") == "Lowercase")
        for step in steps
    )
