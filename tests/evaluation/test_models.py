"""What can be evaluated: bundles, checkpoints, and teachers of either kind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import LABELS, CheckpointMaker, make_texts
from transformers import BertConfig, BertForSequenceClassification, BertModel

from trbert_deploy import load
from trbert_deploy.errors import BundleError, CheckpointError, ConfigError, DataError, StorageError
from trbert_deploy.evaluation.models import open_models
from trbert_deploy.evaluation.quality import evaluate_quality
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.examples import Example

ROWS = make_texts(21)
TEXTS = [Example(row["text"], row["label"], f"text {place}") for place, row in enumerate(ROWS)]
PLAIN = [row["text"] for row in ROWS]


def hf_checkpoint(model_class: type, tokenizer_dir: Path, path: Path) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        id2label=dict(enumerate(LABELS)),
    )
    model_class(config).save_pretrained(path)
    for file in tokenizer_dir.iterdir():
        shutil.copyfile(file, path / file.name)
    return path


def test_a_checkpoint_answers_as_its_bundle(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    direct, teacher = open_models(tiny_checkpoint, threads=1)
    assert teacher is None
    assert direct.chain.backend.description["backend"] == "torch"
    exported = load(tiny_bundle, "torch")
    for ours, theirs in zip(
        direct(PLAIN, return_kept=True), exported(PLAIN, return_kept=True), strict=True
    ):
        assert (ours.label, ours.kept) == (theirs.label, theirs.kept)
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-5)
    with pytest.warns(UserWarning, match="texts longer than 64 tokens are cut"):
        assert direct(["the film " * 50])[0].num_tokens == 64


def test_one_backend_serves_both(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    for path, teacher, backend in (
        (tiny_bundle, tiny_bundle, "onnxruntime"),
        (tiny_bundle, tiny_checkpoint, "torch"),
        (tiny_checkpoint, tiny_bundle, "torch"),
    ):
        opened = open_models(path, teacher)
        assert [
            each.chain.backend.description["backend"] for each in opened if each is not None
        ] == [backend] * 2
    for path, teacher in ((tiny_checkpoint, None), (tiny_bundle, tiny_checkpoint)):
        with pytest.raises(ConfigError, match=r"is a checkpoint, .* trbert-deploy export "):
            open_models(path, teacher, "onnxruntime")


def test_a_threshold_holds_for_checkpoints_too(tiny_checkpoint: Path) -> None:
    pipeline, _ = open_models(tiny_checkpoint, point=OperatingPoint(threshold=0.25))
    assert {cut.rule.value for cut in pipeline.reduction.cuts} == {0.25}


def test_a_teacher_takes_the_dense_side(
    make_checkpoint: CheckpointMaker, tiny_checkpoint: Path
) -> None:
    other = make_checkpoint(seed=3, num_layers=2, cuts="1", labels=LABELS[::-1])
    pipeline, teacher = open_models(tiny_checkpoint, other)
    assert teacher is not None
    alone, report = (evaluate_quality(pipeline, TEXTS, teacher=each) for each in (None, teacher))
    answers = [answer.label for answer in teacher(PLAIN, dense=True)]
    right = sum(answer == row["label"] for answer, row in zip(answers, ROWS, strict=True))
    assert report.dense.score == pytest.approx(right / len(ROWS))
    assert (report.teacher, alone.teacher) == (str(other), None)
    assert report.reduced.score == alone.reduced.score
    assert report.kept_share == alone.kept_share
    # Half the layers, and FLOPs count as the teacher's own.
    assert report.flops_speedup == pytest.approx(alone.flops_speedup / 2, rel=0.02)


def test_any_fine_tuned_model_can_teach(
    tiny_checkpoint: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    path = hf_checkpoint(BertForSequenceClassification, tokenizer_dir, tmp_path / "hf")
    _, teacher = open_models(tiny_checkpoint, path)
    assert teacher is not None and teacher.labels == LABELS
    reference = BertForSequenceClassification.from_pretrained(path).eval()
    row = teacher.tokenize(["a wonderful film"])[0]
    with torch.no_grad():
        expected = reference(torch.from_numpy(row.input_ids)[None]).logits[0].numpy()
    assert teacher.run([row], dense=True)[0].outputs["logits"] == pytest.approx(expected, abs=1e-5)
    headless = hf_checkpoint(BertModel, tokenizer_dir, tmp_path / "encoder")
    with pytest.raises(
        CheckpointError, match="has no head that answers: expected one that is comput"
    ):
        open_models(tiny_checkpoint, headless)


def test_a_teacher_of_something_else_is_refused(
    make_checkpoint: CheckpointMaker, tiny_checkpoint: Path
) -> None:
    pipeline, teacher = open_models(tiny_checkpoint, make_checkpoint(labels=("a", "b", "c")))
    with pytest.raises(DataError, match=r"knows the labels a, b, c: expected those of .*bad, good"):
        evaluate_quality(pipeline, TEXTS, teacher=teacher)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere does not exist"):
        open_models(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        open_models(tmp_path)
