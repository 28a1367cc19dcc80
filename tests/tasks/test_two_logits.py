"""Rerankers with two logits, read as those with one: the second less the first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands_in_tests import run
from conftest import make_texts
from hf_folders import SMALL_FAMILIES, classifier_folder
from tasks.test_text_ranking import write_pairs
from training_in_tests import options_for
from transformers import AutoConfig, AutoModelForSequenceClassification

from trbert_deploy import load
from trbert_deploy.errors import ConfigError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from trbert_deploy.tasks.text_classification import MULTI_LABEL
from trbert_deploy.training.run import train

RANKING = "text-ranking"
TEXTS = [row["text"] for row in make_texts(8, seed=3)]
PAIRS = [("a film", text) for text in TEXTS]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("two") / "folder"
    return classifier_folder(path, tokenizer_dir, ("no", "yes"))


def test_the_score_is_the_probability_of_the_second_label(two: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    run("export", two, "--task", RANKING, "--output", tmp_path / "bundle")
    ours = load(tmp_path / "bundle", threads=1)
    theirs = sentence_transformers.CrossEncoder(str(two))
    expected = theirs.predict(PAIRS, apply_softmax=True)[:, 1]
    assert np.ptp(expected) > 0.01
    assert np.allclose(ours.predict(PAIRS), expected, atol=1e-4)
    assert [answer.score for answer in ours(PAIRS)] == pytest.approx(expected.tolist(), abs=1e-4)
    assert [each["corpus_id"] for each in ours.rank("a film", TEXTS)] == list(np.argsort(-expected))
    as_one = load_checkpoint(two, RANKING)
    save_checkpoint(as_one, tmp_path / "saved")
    saved = sentence_transformers.CrossEncoder(str(tmp_path / "saved"))
    assert np.allclose(saved.predict(PAIRS), expected, atol=1e-4)
    assert load_checkpoint(tmp_path / "saved").model.spec == as_one.model.spec


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # transformers' DeBERTa
@pytest.mark.parametrize("family", sorted(SMALL_FAMILIES))
def test_two_logits_of_every_family_are_one(
    tmp_path: Path, tokenizer_dir: Path, family: str
) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SMALL_FAMILIES[family], num_labels=2)
    theirs = AutoModelForSequenceClassification.from_config(config).eval()
    theirs.save_pretrained(tmp_path / "folder")
    for file in tokenizer_dir.iterdir():
        (tmp_path / "folder" / file.name).write_bytes(file.read_bytes())
    save_checkpoint(load_checkpoint(tmp_path / "folder", RANKING), tmp_path / "saved")
    ours = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    ids = torch.randint(5, 200, (3, 12))
    with torch.no_grad():
        no, yes = theirs(input_ids=ids).logits.T
        assert torch.allclose(ours(input_ids=ids).logits[:, 0], yes - no, atol=1e-5)


def test_checkpoints_and_bundles_are_judged_by_query(two: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl", 40)
    figures = tmp_path / "figures.json"
    asked = ("--data", data, "--task", RANKING, "--json", figures)
    run("export", two, "--task", RANKING, "--output", tmp_path / "bundle")
    run("evaluate", two, *asked)
    of_checkpoint = json.loads(figures.read_text())
    run("evaluate", tmp_path / "bundle", *asked)
    of_bundle = json.loads(figures.read_text())
    assert of_checkpoint["measure"] == "mrr_10" and of_checkpoint["rows"] == 40
    assert of_bundle["dense"]["mrr_10"] == pytest.approx(of_checkpoint["dense"]["mrr_10"])
    run("evaluate", tmp_path / "bundle", "--teacher", two, *asked)
    export_bundle(two, tmp_path / "classifier")
    with pytest.raises(ConfigError, match="is a bundle for text-classification: for text-ranking"):
        run("evaluate", tmp_path / "classifier", *asked)


@pytest.mark.slow
def test_it_is_trained_and_compressed_as_a_reranker(two: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl", 160)
    options = replace(options_for(tmp_path), model=str(two), train=data, validation=data)
    report = train(replace(options, task=RANKING), tmp_path / "ckpt")
    assert report.measure == "mrr_10"
    spec = load_checkpoint(tmp_path / "ckpt").model.spec
    assert (spec.task, spec.labels) == (RANKING, ("LABEL_0",))
    output = run(
        "compress", two, "--texts", data, "--task", RANKING, "--output", tmp_path / "bundle",
        "--work", tmp_path / "work", "--html", tmp_path / "report.html",
    )  # fmt: skip
    assert "bundle" in output  # the dense model: so small a one gains nothing
    assert load(tmp_path / "bundle", threads=1).task.name == RANKING


@pytest.mark.parametrize(
    ("labels", "entries", "task", "message"),
    [
        (("a", "b", "c"), {}, RANKING, "has a head for text-classification: expected that task"),
        (("a", "b"), {"problem_type": MULTI_LABEL}, RANKING, "has a head for text-classification"),
        (("a", "b"), {}, "question-answering", "has a head for text-classification: expected th"),
        (("a",), {}, "text-classification", "has a head for text-ranking: expected that task"),
    ],
)
def test_others_are_refused(
    tmp_path: Path,
    tokenizer_dir: Path,
    labels: tuple[str, ...],
    entries: dict[str, Any],
    task: str,
    message: str,
) -> None:
    folder = classifier_folder(tmp_path / "folder", tokenizer_dir, labels, **entries)
    with pytest.raises(ConfigError, match=message):
        export_bundle(folder, tmp_path / "bundle", task=task)
    assert not (tmp_path / "bundle").exists()
