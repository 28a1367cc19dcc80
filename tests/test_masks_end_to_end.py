"""Masked words through every command: a choice that is learned, a language model made faster."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import BAD, GOOD, make_texts
from transformers import BertConfig, BertForMaskedLM

from trbert_deploy import load
from trbert_deploy.cli import cli

RECIPE = "batch_tokens = 512\nvalidations = 1\naveraged_runs = 1\n[teacher]\nepochs = 12.0\n"
RECIPE += "learning_rate = 1e-3\n"
NAMES = ("bad", "good")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def language_model(tmp_path: Path, tokenizer_dir: Path) -> Path:
    """A seeded tiny masked language model that knows nothing."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=256, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # further from each other, states tell more
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(tmp_path / "model")
    shutil.copytree(tokenizer_dir, tmp_path / "model", dirs_exist_ok=True)
    return tmp_path / "model"


def masked(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts that say at their end what kind of word tells: one word of each kind."""
    rows = []
    for row in make_texts(count, seed):
        good = row["label"] == "good"
        text = f"{row['text']} the film [MASK] him."
        rows.append({"text": text, "label": (GOOD if good else BAD)[0]})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.slow
def test_a_choice_is_trained_served_and_judged(tmp_path: Path, language_model: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    rows = masked(280)
    data = write(tmp_path / "train.jsonl", rows[:-40])
    test = write(tmp_path / "test.jsonl", rows[-40:])
    told = run(
        "train", "--model", str(language_model), "--task", "fill-mask", "--train", data,
        "--validation", test, "--recipe", str(tmp_path / "recipe.toml"),
        "--target-speedup", "1.5", "--output", str(tmp_path / "ckpt"),
    )  # fmt: skip
    assert "trained for a choice among the 2 words of the labels" in " ".join(told.split())
    run("export", str(tmp_path / "ckpt"), "--output", str(tmp_path / "bundle"))
    report = tmp_path / "report.json"
    run("evaluate", str(tmp_path / "bundle"), "--data", test, "--json", str(report))
    quality = json.loads(report.read_text())
    print(quality)
    assert quality["measure"] == "accuracy" and quality["flops_speedup"] > 1.2
    answers = run("predict", str(tmp_path / "bundle"), "--input", test)
    print(answers[:400])
    run("bench", str(tmp_path / "bundle"), "--lengths", "32", "--batches", "1", "--rounds", "3")
