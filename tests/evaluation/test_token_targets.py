"""Targets of tokens: texts are tokenized once for them and for the models, and named in errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hf_folders import classifier_folder
from transformers import BertForQuestionAnswering, BertForTokenClassification

from trbert_deploy.errors import DataError, LengthError
from trbert_deploy.evaluation import quality
from trbert_deploy.evaluation.quality import evaluate_quality, true_targets
from trbert_deploy.modeling.checkpoints.pipeline import load_checkpoint_pipeline
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.tasks.examples import Example

TEXTS = [
    Example("The city.", ((0, 3, "O"), (4, 9, "B-PLACE")), "line 1"),
    Example("A film " * 60, tuple((7 * n + 2, 7 * n + 6, "O") for n in range(60)), "line 2"),
    Example("The war.", ((4, 8, "B-PLACE"),), "line 3"),
]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Pipeline:
    path = tmp_path_factory.mktemp("tagger") / "folder"
    classifier_folder(path, tokenizer_dir, ("O", "B-PLACE"), BertForTokenClassification)
    return load_checkpoint_pipeline(path, threads=1)


@pytest.mark.parametrize("at_a_time", [2, 2000])
def test_texts_are_tokenized_once(
    tagger: Pipeline, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    monkeypatch.setattr(quality, "TOKENIZED_AT_A_TIME", at_a_time)
    before = tagger.tokenizer.encoded
    report = evaluate_quality(tagger, TEXTS)
    assert tagger.tokenizer.encoded - before == len(TEXTS) + 2  # and one text to warm up, by both
    assert report.rows == 3 and report.measure == "entity_f1"
    assert report.tokens_per_row == pytest.approx(
        sum(len(part) for row in tagger.tokenize([e.text for e in TEXTS]) for part in row.parts) / 3
    )
    targets = true_targets(tagger, TEXTS)
    assert targets is not None and len(targets) == 3
    bare = [*TEXTS[:2], Example("A film.", name="line 3")]
    assert true_targets(tagger, bare) is None
    assert evaluate_quality(tagger, bare).measure == "agreement"


def test_errors_have_names(tagger: Pipeline, tmp_path: Path, tokenizer_dir: Path) -> None:
    for text, target, message in (
        (" ", (), "^line 2 is empty"),
        ("a film", ((0, 1, "B-SHIP"),), "^line 2: the model does not know the tag 'B-SHIP'"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate_quality(tagger, [TEXTS[0], Example(text, target, "line 2")])
    labels = ("LABEL_0", "LABEL_1")
    classifier_folder(tmp_path / "folder", tokenizer_dir, labels, BertForQuestionAnswering)
    reader = load_checkpoint_pipeline(tmp_path / "folder", threads=1)
    answers = {"text": [], "answer_start": []}
    question = Example(("the film " * 70, "the city"), answers, "line 7")
    with pytest.raises(LengthError, match=r"^line 7 has .* tokens beside the text that is read"):
        evaluate_quality(reader, [question])
