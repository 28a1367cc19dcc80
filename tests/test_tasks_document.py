"""docs/tasks.md: its files are read, its answers have that shape, its measures and code are there.

Each section may have a block of JSON lines (texts), one of JSON (what predict prints of the first),
``Measures:`` with their names, and Python, which runs beside a bundle of the section's task.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hf_folders import classifier_folder, sentence_folder
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForTokenClassification,
)

from trbert_deploy import load
from trbert_deploy.cli import cli
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.reading.examples import read_examples
from trbert_deploy.tasks.columns import ColumnNames

DOCUMENT = Path(__file__).parents[1] / "docs" / "tasks.md"
SECTIONS = dict(
    re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", DOCUMENT.read_text("utf-8"), flags=re.M | re.S)
)
#: Section -> what makes a checkpoint at a path, of a directory with a tokenizer.
MODELS: dict[str, Callable[[Path, Path], Path]] = {
    "One label": partial(classifier_folder, labels=("negative", "positive")),
    "Several labels": partial(
        classifier_folder, labels=("price", "service"), problem_type="multi_label_classification"
    ),
    "Numbers": partial(classifier_folder, labels=("LABEL_0",), problem_type="regression"),
    "Text ranking": partial(classifier_folder, labels=("LABEL_0",)),
    "Sentence embeddings": partial(sentence_folder, prompts={"query": "who ", "document": ""}),
    "Tags of words": partial(
        classifier_folder, labels=("O", "B-PLACE", "I-PLACE"), kind=BertForTokenClassification
    ),
    "Questions about a context": partial(
        classifier_folder, labels=("LABEL_0", "LABEL_1"), kind=BertForQuestionAnswering
    ),
    "Masked words": partial(classifier_folder, labels=("LABEL_0",), kind=BertForMaskedLM),
    "Multiple choice": partial(classifier_folder, labels=("LABEL_0",), kind=BertForMultipleChoice),
}
#: Besides, in sections that name it.
TWO_LOGITS = partial(classifier_folder, labels=("LABEL_0", "LABEL_1"))


def blocks(section: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", SECTIONS[section], flags=re.M | re.S)


def shape_of(value: Any) -> Any:
    """Keys in order, and kinds of values; how many names a list has depends on the model."""
    if isinstance(value, dict):
        return [(key, shape_of(each)) for key, each in value.items()]
    return type(value)


@pytest.fixture(params=MODELS)
def section(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tokenizer_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The name of a section, in a directory with its files and bundles."""
    monkeypatch.chdir(tmp_path)
    name: str = request.param
    models = {"bundle": MODELS[name]}
    if "two-logits/" in SECTIONS[name]:
        models["two-logits"] = TWO_LOGITS
    for bundle, make in models.items():
        export_bundle(make(tmp_path / f"{bundle}-folder", tokenizer_dir), tmp_path / bundle)
    (tmp_path / "texts.jsonl").write_text("".join(blocks(name, "jsonl")))
    return name


def test_every_task_has_a_section() -> None:
    assert list(SECTIONS) == list(MODELS)


def test_what_stands_there_is_so(section: str, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    done = CliRunner().invoke(cli, ["predict", "bundle", "--input", str(texts)])
    assert done.exit_code == 0, done.output
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    (shown,) = blocks(section, "json")
    assert shape_of(answers[0]) == shape_of(json.loads(shown))
    model = load(tmp_path / "bundle", threads=1)
    examples = list(read_examples(texts, model.task, ColumnNames(), with_targets=True))
    inputs = model.inputs_of([example.text for example in examples])
    encodings = model.tokenizer.encode(inputs)
    outputs = [result.outputs for result in model.run(model.rows(encodings, inputs))]
    measures: dict[str, float] = {}
    if model.task.columns:  # embeddings have no labels
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measures = model.task.metrics(outputs, model.task.targets(examples, encodings))
    (told,) = re.findall(r"^Measures\b(.*?)\n\n", SECTIONS[section], flags=re.M | re.S)
    assert re.findall(r"`(\w+)`", told) == list(measures)


def test_its_code_runs(section: str) -> None:
    codes = blocks(section, "python")
    assert codes
    for code in codes:
        exec(compile(code, "docs/tasks.md", "exec"), {})
