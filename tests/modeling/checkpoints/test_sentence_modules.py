"""The configurations of single modules, old and new."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.checkpoints.sentence_modules import (
    check_normalize,
    read_max_length,
    read_pooling,
)

MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")
LOWERCASE = {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]}


def write(path: Path, **values: object) -> Path:
    path.write_text(json.dumps(values))
    return path


def flags(*modes: str) -> dict[str, object]:
    """The pooling of versions before 5.4."""
    return {f"pooling_mode_{mode}": mode in modes for mode in MODES}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (flags("cls_token"), "first"),
        (flags("mean_tokens"), "mean"),
        (flags("max_tokens"), "max"),
        (flags(), "mean"),
        ({}, "mean"),
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": ["max"]}, "max"),
        ({"pooling_mode": "max", **flags("mean_tokens")}, "max"),
    ],
)
def test_poolings_are_read(tmp_path: Path, config: dict[str, object], expected: str) -> None:
    assert read_pooling(write(tmp_path / "config.json", **config), {"query": "q: "}) == expected


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (flags("weightedmean_tokens"), "weightedmean"),
        (flags("mean_sqrt_len_tokens"), "mean_sqrt_len_tokens"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        (flags("cls_token", "mean_tokens"), "cls and mean"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["max", "mean"]}, "max and mean"),
        ({"pooling_mode": []}, r"\[\]"),
        ({"pooling_mode": 3}, "3"),
    ],
)
def test_other_poolings_are_refused_by_name(
    tmp_path: Path, config: dict[str, object], found: str
) -> None:
    file = write(tmp_path / "config.json", **config)
    with pytest.raises(CheckpointError, match=f"the pooling {found}: expected one of cls, mean, m"):
        read_pooling(file, {})


def test_prompts_outside_the_pooling_are_refused_where_there_are_prompts(tmp_path: Path) -> None:
    file = write(tmp_path / "config.json", pooling_mode="mean", include_prompt=False)
    assert read_pooling(file, {"query": "", "document": ""}) == "mean"
    with pytest.raises(CheckpointError, match="has include_prompt false"):
        read_pooling(file, {"query": "q: "})


def test_a_pooling_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_pooling(tmp_path / "config.json", {})


def test_a_normalize_of_the_embedding_passes(tmp_path: Path) -> None:
    assert check_normalize(tmp_path / "2_Normalize")  # old ones have no directory
    write(tmp_path / "config.json", module_input_name="sentence_embedding", module_output_name=None)
    assert check_normalize(tmp_path)


@pytest.mark.parametrize("key", ["module_input_name", "module_output_name"])
def test_a_normalize_of_something_else_is_refused(tmp_path: Path, key: str) -> None:
    write(tmp_path / "config.json", **{key: "token_embeddings"})
    with pytest.raises(CheckpointError, match=f"has {key} 'token_embeddings': expected"):
        check_normalize(tmp_path)


@pytest.mark.parametrize(
    ("file", "config", "tokenizer", "expected"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 128}, {"model_max_length": 512}, 128),
        ("sentence_roberta_config.json", {"max_seq_length": 75}, None, 75),
        ("sentence_bert_config.json", {"max_seq_length": None}, {"model_max_length": 512}, 512),
        ("sentence_bert_config.json", {}, {"model_max_length": 10**30}, None),
        ("sentence_bert_config.json", {}, {"model_max_length": 1e30}, None),
        ("sentence_bert_config.json", {}, {}, None),
        ("nothing.json", {}, None, None),
    ],
)
def test_the_longest_row_is_found(
    tmp_path: Path,
    file: str,
    config: dict[str, object],
    tokenizer: dict[str, object] | None,
    expected: int | None,
) -> None:
    write(tmp_path / file, **config)
    if tokenizer is not None:
        write(tmp_path / "tokenizer_config.json", **tokenizer)
    assert read_max_length(tmp_path) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_seq_length": 0}, "the longest row 0: expected a positive number"),
        ({"max_seq_length": "128"}, "the longest row '128': expected"),
        ({"max_seq_length": True}, "the longest row True: expected"),
        ({"transformer_task": "fill-mask"}, "has the task 'fill-mask': expected 'feature-extr"),
        ({"query_length": 32}, "has query_length 32: expected none"),
        ({"processing_kwargs": {"text": {"truncation": False}}}, "has processing_kwargs {'text'"),
    ],
)
def test_settings_that_change_the_answers_are_refused(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    write(tmp_path / "sentence_bert_config.json", **config)
    with pytest.raises(CheckpointError, match=message):
        read_max_length(tmp_path)


def test_lower_case_is_left_to_the_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "sentence_bert_config.json", max_seq_length=64, do_lower_case=True)
    for normalizer in ({"type": "BertNormalizer", "lowercase": True}, LOWERCASE):
        write(tmp_path / "tokenizer.json", normalizer=normalizer)
        assert read_max_length(tmp_path) == 64
    for kept in ({"type": "BertNormalizer", "lowercase": False}, {"type": "NFC"}, None):
        write(tmp_path / "tokenizer.json", normalizer=kept)
        with pytest.raises(CheckpointError, match="has do_lower_case true, and its tokenizer"):
            read_max_length(tmp_path)
