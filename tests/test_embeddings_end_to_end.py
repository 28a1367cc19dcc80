"""Sentence embeddings: a folder of sentence-transformers through every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands_in_tests import run
from conftest import make_texts
from transformers import BertConfig, BertModel

from trbert_deploy import load
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.exporters.export import export_bundle

sentence_transformers = pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.filterwarnings("ignore:texts longer than 32 tokens")

TEXTS = [row["text"] for row in make_texts(24, seed=3)]
PROMPTS = {"query": "the film ", "passage": "after the war "}


def write_folder(
    directory: Path, tokenizer_dir: Path, pooling: str, normalize: bool, **options: Any
) -> Path:
    """A seeded tiny sentence encoder, as sentence-transformers saves it."""
    from sentence_transformers.sentence_transformer.modules import (
        Normalize,
        Pooling,
        Transformer,
    )
    from transformers import BertTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=256, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    model = BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(directory / "encoder")
    tokenizer = BertTokenizerFast(tokenizer_file=str(tokenizer_dir / "tokenizer.json"))
    tokenizer.save_pretrained(directory / "encoder")
    transformer = Transformer(str(directory / "encoder"), max_seq_length=32)
    modules = [transformer, Pooling(32, pooling_mode=pooling), *([Normalize()] * normalize)]
    whole = sentence_transformers.SentenceTransformer(modules=modules, device="cpu", **options)
    whole.save(str(directory / "whole"))
    return directory / "whole"


@pytest.mark.parametrize(
    ("pooling", "normalize"), [("cls", True), ("mean", True), ("mean", False), ("max", False)]
)
def test_the_dense_bundle_embeds_as_sentence_transformers_does(
    tmp_path: Path, tokenizer_dir: Path, pooling: str, normalize: bool
) -> None:
    folder = write_folder(
        tmp_path, tokenizer_dir, pooling, normalize, prompts=PROMPTS, default_prompt_name="passage"
    )
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    report = export_bundle(folder, tmp_path / "bundle")
    assert report.is_dense
    ours = load(tmp_path / "bundle", threads=1)
    assert ours.tokenizer.max_length == 32
    found = ours.encode(TEXTS)
    np.testing.assert_allclose(found, theirs.encode(TEXTS), atol=1e-4)
    assert found.dtype == np.float32 and found.shape == (24, 32)
    for options in (
        {"prompt_name": "query"}, {"prompt": "his mother "}, {"truncate_dim": 8},
        {"truncate_dim": 8, "normalize_embeddings": True}, {"batch_size": 5},
    ):  # fmt: skip
        expected = theirs.encode(TEXTS, **options)
        np.testing.assert_allclose(ours.encode(TEXTS, **options), expected, atol=1e-4)
    one = ours.encode(TEXTS[0])
    np.testing.assert_allclose(one, theirs.encode(TEXTS[0]), atol=1e-4)
    assert one.shape == (32,)
    np.testing.assert_allclose(ours.encode_query(TEXTS), theirs.encode_query(TEXTS), atol=1e-4)
    np.testing.assert_allclose(
        ours.encode_document(TEXTS), theirs.encode_document(TEXTS), atol=1e-4
    )
    short = load(tmp_path / "bundle", threads=1, dimensions=8, prompt="query")
    predicted = np.array([each.embedding for each in short(TEXTS)])
    cut = theirs.encode(TEXTS, prompt_name="query", truncate_dim=8, normalize_embeddings=normalize)
    np.testing.assert_allclose(predicted, cut, atol=1e-4)


def test_bad_calls_are_refused_in_one_line(tmp_path: Path, tokenizer_dir: Path) -> None:
    folder = write_folder(tmp_path, tokenizer_dir, "mean", True)
    export_bundle(folder, tmp_path / "bundle")
    pipeline = load(tmp_path / "bundle", threads=1)
    assert pipeline.encode([]).shape == (0, 32)
    with pytest.raises(ConfigError, match="has no prompt 'title': it has document, query"):
        pipeline.encode(TEXTS, prompt_name="title")
    with pytest.raises(ConfigError, match="truncate_dim is 33"):
        pipeline.encode(TEXTS, truncate_dim=33)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        pipeline.encode(TEXTS, batch_size=0)
    with pytest.raises(DataError, match="text 2 is empty"):
        pipeline.encode(["a film", " "])
    with pytest.raises(DataError, match="text 1 is of type int"):
        pipeline.encode([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="does not score pairs: expected a reranker"):
        pipeline.rank("a film", ["a", "b"])


def test_a_classifier_makes_no_embeddings(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="a model for text-classification makes no embeddings"):
        load(tiny_bundle, threads=1).encode(["a film"])
    with pytest.raises(ConfigError, match="dimensions is 4, and the model is for text-"):
        load(tiny_bundle, threads=1, dimensions=4)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["gates", "reinforce"])
def test_embeddings_are_reduced_from_plain_texts(
    tmp_path: Path, tokenizer_dir: Path, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_folder(tmp_path, tokenizer_dir, "mean", True)
    rows = [json.dumps({"text": row["text"]}) for row in make_texts(120, seed=5)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    (tmp_path / "recipe.toml").write_text(
        f'estimator = "{estimator}"\nbatch_tokens = 512\nvalidations = 1\naveraged_runs = 1\n'
    )
    run(
        "train", "--model", str(folder), "--train", "texts.jsonl", "--recipe", "recipe.toml",
        "--target-speedup", "1.5", "--output", "ckpt",
    )  # fmt: skip
    record = json.loads((tmp_path / "ckpt/training.json").read_text())
    assert record["teacher_score"] == pytest.approx(1.0)
    assert record["stages"]["hard"]["measure"] == "agreement"
    assert record["stages"]["hard"]["score"] > 0.8
    # sentence-transformers reads it as the dense model.
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "ckpt"), device="cpu")
    run("export", "ckpt", "--output", "bundle")
    ours = load("bundle", threads=1)
    dense = np.array([each.embedding for each in ours(TEXTS[:4], dense=True)])
    np.testing.assert_allclose(dense, again.encode(TEXTS[:4]), atol=1e-4)
    lines = run("predict", "bundle", "--input", "texts.jsonl", "--dimensions", "5").splitlines()
    answers = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(answers) == 120 and {len(each["embedding"]) for each in answers} == {5}
    run("evaluate", "bundle", "--data", "texts.jsonl", "--json", "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["measure"] == "agreement" and report["reduced"]["agreement"] > 0.8
    assert report["flops_speedup"] > 1.2
