"""Masked words through every command: a choice that is learned, a language model made faster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from commands_in_tests import run, write
from conftest import BAD, GOOD, make_texts
from hf_folders import deeper_folder
from transformers import AutoModelForMaskedLM, BertForMaskedLM

from trbert_deploy import load
from trbert_deploy.cli import cli
from trbert_deploy.errors import DataError

RECIPE = "batch_tokens = 512\nvalidations = 1\naveraged_runs = 1\n[teacher]\nepochs = 20.0\n"
RECIPE += "learning_rate = 3e-3\n"


@pytest.fixture
def language_model(tmp_path: Path, tokenizer_dir: Path) -> Path:
    """A seeded tiny masked language model that knows nothing."""
    return deeper_folder(tmp_path / "model", tokenizer_dir, BertForMaskedLM)


def masked(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts that say at their end what kind of word tells: one word of each kind."""
    rows = []
    for row in make_texts(count, seed):
        good = row["label"] == "good"
        text = f"{row['text']} the film [MASK] him."
        rows.append({"text": text, "label": (GOOD if good else BAD)[0]})
    return rows


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
    assert quality["measure"] == "accuracy" and quality["flops_speedup"] > 1.2
    assert quality["dense"]["accuracy"] > 0.85 and quality["reduced"]["accuracy"] > 0.8
    answers = run("predict", str(tmp_path / "bundle"), "--input", test, "--kept")
    assert len(answers.splitlines()) == 40
    for line in answers.splitlines():
        answer = json.loads(line)
        assert {fill["token_str"] for fill in answer["fills"]} == {GOOD[0], BAD[0]}
        assert sum(fill["score"] for fill in answer["fills"]) == pytest.approx(1.0)
        assert all("[MASK]" in cut["tokens"] for cut in answer["kept"])
    run("bench", str(tmp_path / "bundle"), "--lengths", "32", "--rounds", "3")
    config = json.loads((tmp_path / "ckpt" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
    assert sorted(config["targets"]) == sorted([GOOD[0], BAD[0]])
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "ckpt")
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


@pytest.mark.slow
def test_a_language_model_is_compressed_from_texts_alone(
    tmp_path: Path, language_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [{"text": f"{row['text']} the [MASK] and the [MASK]."} for row in make_texts(60)]
    (tmp_path / "recipe.toml").write_text(
        "batch_tokens = 512\nvalidations = 1\naveraged_runs = 1\n[policy]\nepochs = 1.0\n"
        "[joint]\nepochs = 1.0\n[hard]\nepochs = 1.0\n"
    )
    data = write(tmp_path / "texts.jsonl", texts)
    run(
        "train", "--model", str(language_model), "--task", "fill-mask", "--train", data,
        "--recipe", str(tmp_path / "recipe.toml"), "--target-speedup", "1.3",
        "--output", str(tmp_path / "ckpt"),
    )  # fmt: skip
    run("export", str(tmp_path / "ckpt"), "--output", str(tmp_path / "bundle"))
    found = load(tmp_path / "bundle", threads=1)([row["text"] for row in texts[:3]])
    assert all(len(fills) == 2 and len(fills[0]) == 5 for fills in (each.fills for each in found))
    # It stays the model as it came, whatever the time it takes.
    monkeypatch.setattr("trbert_deploy.compress.probe.LEAST_GAIN", 1e9)
    run(
        "compress", str(language_model), "--texts", data, "--output", str(tmp_path / "out"),
        "--work", str(tmp_path / "work"),
    )  # fmt: skip
    assert load(tmp_path / "out", threads=1).task.name == "fill-mask"
    bare = write(tmp_path / "bare.jsonl", [{"text": row["text"]} for row in make_texts(60)])
    without = ["train", "--model", str(language_model), "--train", bare]
    for command in (without, [*without, "--task", "fill-mask"]):
        failed = CliRunner().invoke(cli, [*command, "--output", str(tmp_path / "none")])
        told = "has no mask among" if "--task" in command else "--task fill-mask takes"
        assert isinstance(failed.exception, DataError) and told in str(failed.exception)
