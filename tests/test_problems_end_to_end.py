"""Several labels, and numbers, through the whole product: read, trained, exported, evaluated."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from commands_in_tests import write
from conftest import BAD, GOOD, make_texts
from hf_folders import SMALL_FAMILIES, write_scaled
from training_in_tests import options_for, with_recipe
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    pipeline,
)

from trbert_deploy import load
from trbert_deploy.cli import cli
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from trbert_deploy.tasks.text_classification import MULTI_LABEL, REGRESSION
from trbert_deploy.training.run import train

TOPICS = ("bad", "good", "long")
PROBLEMS = {MULTI_LABEL: TOPICS, REGRESSION: ("LABEL_0",)}


def make_rows(problem: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts with what can be learned of them: whether words tell good or bad, and how many."""
    rows = []
    for row in make_texts(count, seed):
        words = row["text"].rstrip(".").split()
        found = {"good": bool({*words} & {*GOOD}), "bad": bool({*words} & {*BAD})}
        topics = [topic for topic in TOPICS if found.get(topic, len(words) > 20)]
        label: Any = topics if problem == MULTI_LABEL else 2.5 if found["good"] else -0.5
        rows.append({"text": row["text"], "label": label})
    return rows


def folder_of(path: Path, tokenizer_dir: Path, problem: str, family: str = "bert") -> Path:
    """A folder of transformers with random weights."""
    labels = PROBLEMS[problem]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, **SMALL_FAMILIES[family], problem_type=problem,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config).eval()
    return write_scaled(model, 3.0, path, tokenizer_dir)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # transformers' DeBERTa
@pytest.mark.parametrize("family", sorted(SMALL_FAMILIES))
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_family_keeps_the_kind_of_its_answers(
    tmp_path: Path, tokenizer_dir: Path, family: str, problem: str
) -> None:
    folder = folder_of(tmp_path / "folder", tokenizer_dir, problem, family)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.model.spec.problem == problem
    save_checkpoint(checkpoint, tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert again.config.problem_type == problem
    assert load_checkpoint(tmp_path / "saved").model.spec == checkpoint.model.spec


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_bundle_answers_as_the_pipeline_of_transformers(
    tmp_path: Path, tokenizer_dir: Path, problem: str
) -> None:
    folder = folder_of(tmp_path / "folder", tokenizer_dir, problem)
    if problem == MULTI_LABEL:
        described = json.loads((folder / "config.json").read_text())
        described["label_thresholds"] = {"good": 0.01}
        (folder / "config.json").write_text(json.dumps(described))
    export_bundle(folder, tmp_path / "bundle")
    served = load(tmp_path / "bundle", threads=1)
    theirs = pipeline(
        "text-classification",
        AutoModelForSequenceClassification.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    texts = [row["text"] for row in make_texts(6, seed=9)]
    for ours, best, every in zip(
        served(texts), theirs(texts), theirs(texts, top_k=None), strict=True
    ):
        values = ours.to_json()
        assert values["label"] == best["label"]
        assert values["score"] == pytest.approx(best["score"], abs=1e-4)
        expected = {each["label"]: each["score"] for each in every}
        assert values["scores"] == pytest.approx(expected, abs=1e-4)
        if problem == MULTI_LABEL:
            counting = [
                each for each in TOPICS if expected[each] >= (0.01 if each == "good" else 0.5)
            ]
            assert list(values["labels"]) == counting


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
def test_an_encoder_learns_and_is_served(tmp_path: Path, tokenizer_dir: Path, problem: str) -> None:
    reference = AutoModelForSequenceClassification.from_pretrained(
        folder_of(tmp_path / "folder", tokenizer_dir, problem)
    )
    BertModel(reference.config).save_pretrained(tmp_path / "encoder")
    shutil.copytree(tokenizer_dir, tmp_path / "encoder", dirs_exist_ok=True)
    options = options_for(tmp_path)
    for name, count, seed in (("train", 240, 0), ("validation", 48, 1), ("test", 48, 2)):
        write(tmp_path / f"{name}.jsonl", make_rows(problem, count, seed))
    notes: list[str] = []
    report = train(options, tmp_path / "ckpt", note=notes.append)
    told = "several for a text" if problem == MULTI_LABEL else "which are numbers"
    assert any("a new one is trained for the labels, " + told in note for note in notes)
    assert report.measure == ("macro_f1" if problem == MULTI_LABEL else "spearman")
    assert report.stages["hard"].score > 0.5
    # Without labels, from its own answers
    texts = [{"text": row["text"]} for row in make_rows(problem, 80, 3)]
    unlabelled = with_recipe(
        type(options)(
            **{
                **{name: getattr(options, name) for name in ("recipe", "target_speedup")},
                "model": str(tmp_path / "ckpt" / "stages" / "teacher"),
                "train": write(tmp_path / "texts.jsonl", texts),
                "validation": None,
            }
        ),
        hard={"epochs": 0.5},
    )
    assert train(unlabelled, tmp_path / "again").measure == "agreement"
    export_bundle(tmp_path / "ckpt", tmp_path / "bundle")
    data, figures = str(tmp_path / "test.jsonl"), tmp_path / "figures.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(
            cli, ["evaluate", str(tmp_path / "bundle"), "--data", data, "--json", str(figures)]
        )
    assert done.exit_code == 0, done.output
    found = json.loads(figures.read_text())
    assert found["measure"] == report.measure
    assert found["reduced"][report.measure] > 0.5
    change = 100 * (found["reduced"][report.measure] - found["dense"][report.measure])
    assert found["score_change"] == pytest.approx(change)
    done = CliRunner().invoke(cli, ["predict", str(tmp_path / "bundle"), "--input", data])
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 48
    assert all(np.isfinite(answer["score"]) for answer in answers)
    assert all(("labels" in answer) == (problem == MULTI_LABEL) for answer in answers)
