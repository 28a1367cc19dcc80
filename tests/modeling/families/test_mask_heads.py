"""The head for masked words, of every family against transformers: loaded, and saved again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_texts
from hf_folders import SMALL_FAMILIES
from modeling.families.test_token_heads import folder_of
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from trbert_deploy import load
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import CheckpointError, ConfigError, DataError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trbert_deploy.modeling.checkpoints.pretrained import Pretrained, load_pretrained, task_for
from trbert_deploy.modeling.checkpoints.tokenizer import tokenizer_directory
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import dense_outputs
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.fill_mask import MASK_ID, TARGET_IDS, FillMask
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.training.batches import load_batches
from trbert_deploy.training.data import TrainingRow

MASK = 4
WORDS = ("film", "city", "war")
VARIANTS = {
    **{name: (name, {}) for name in SMALL_FAMILIES},
    "deberta's authors'": ("deberta-v2", {"legacy": False}),
}


def mask_folder(
    path: Path,
    tokenizer_dir: Path,
    family: str = "bert",
    changes: Mapping[str, Any] = {},
    model: Any = AutoModelForMaskedLM,
    **entries: Any,
) -> Path:
    """A folder whose tokenizer says which token is the mask, whatever class reads it."""
    folder_of(path, tokenizer_dir, family, model, changes, **entries)
    config = path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"mask_token": "[MASK]"}))
    return path


def save(made: Pretrained, source: Path, target: Path, texts: tuple[str, ...] = ()) -> None:
    """Write a model as training does, with the tokenizer of its source."""
    with TemporaryDirectory() as scratch:
        tokenizer = tokenizer_directory(str(source), Path(scratch))
        checkpoint = Checkpoint(made.model, tokenizer, 64, samples=texts, hf_config=made.hf_config)
        save_checkpoint(checkpoint, target)


def rows_with_masks() -> list[TokenRow]:
    """Rows of one mask, of two, and of nothing else."""
    generator = np.random.default_rng(1)
    rows = [generator.integers(10, 200, length) for length in (11, 1, 7)]
    for row, places in zip(rows, ([3], [0], [2, 6]), strict=True):
        row[places] = MASK
    return [TokenRow(row, np.zeros_like(row)) for row in rows]


@torch.no_grad()
def theirs_of(path: Path, rows: list[TokenRow]) -> list[np.ndarray]:
    """What transformers says of masks: [A, V] each."""
    model = AutoModelForMaskedLM.from_pretrained(path).eval()
    found = []
    for row in rows:
        ids = torch.from_numpy(row.input_ids)
        found.append(model(input_ids=ids[None]).logits[0][ids == MASK].numpy())
    return found


@torch.no_grad()
def ours_of(model: ReducedModel, rows: list[TokenRow]) -> list[np.ndarray]:
    """What we say of them, packed."""
    training = [TrainingRow(row, np.zeros(1, np.int64)) for row in rows]
    (batch,) = load_batches(training, [[0, 1, 2]], torch.device("cpu"))
    logits = dense_outputs(model, batch)["logits"]
    assert logits.dtype == torch.float32 and logits.shape[:2] == (3, 2)
    found = {}
    for place, row in enumerate(batch.rows.tolist()):
        masks = int((rows[row].input_ids == MASK).sum())
        assert not logits[place, masks:].any()
        found[row] = logits[place, :masks].numpy()
    return [found[row] for row in range(3)]


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one / scale, other / scale, atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_are_answered_as_by_transformers(
    tmp_path: Path, tokenizer_dir: Path, variant: str
) -> None:
    family, changes = VARIANTS[variant]
    path = mask_folder(tmp_path / "folder", tokenizer_dir, family, changes)
    rows = rows_with_masks()
    theirs = theirs_of(path, rows)
    loaded = load_checkpoint(path)
    spec = loaded.model.spec
    assert (spec.task, spec.labels, spec.answers[MASK_ID]) == ("fill-mask", (), MASK)
    assert spec.num_logits == spec.vocab_size
    assert_close(ours_of(loaded.model, rows), theirs)
    save_checkpoint(loaded, tmp_path / "saved")
    assert_close(theirs_of(tmp_path / "saved", rows), theirs)
    assert load_checkpoint(tmp_path / "saved").model.spec == spec


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_exported_with_cuts_answers_as_pytorch(
    tmp_path: Path, tokenizer_dir: Path, variant: str
) -> None:
    """The export compares graphs and chain itself; masks survive, and the dense model is theirs."""
    family, changes = VARIANTS[variant]
    path = mask_folder(tmp_path / "folder", tokenizer_dir, family, changes)
    head = FillMask.new_head([Example("", word) for word in WORDS])
    for chosen, few in ((None, "fill-mask"), (head, None)):
        pretrained = load_pretrained(str(path), chosen, ReductionConfig.parse("0.5,1"), few)
        assert pretrained.fine_tuned == (chosen is None)
        model = pretrained.model
        with torch.no_grad():
            for policy in model.policies:
                policy.score.weight.mul_(20.0)
        saved = tmp_path / f"ckpt-{len(model.spec.answers[TARGET_IDS])}"
        texts = tuple(f"the [MASK] {row['text']}" for row in make_texts(4))
        save(pretrained, path, saved, texts)
        bundle = tmp_path / f"bundle-{saved.name}"
        report = export_bundle(saved, bundle)
        assert [parity.graph for parity in report.graphs] == [
            "segment_0", "segment_1", "segment_2", "dense", "head",
        ]  # fmt: skip
        assert not report.random_rows
        rows, ids = rows_with_masks(), model.spec.answers[TARGET_IDS]
        theirs = [each[:, ids] if ids else each for each in theirs_of(saved, rows)]
        for backend in ("onnxruntime", "torch"):
            served = load(bundle, backend, threads=1)
            dense = served.run(rows, dense=True)
            assert_close([each.outputs["logits"] for each in dense], theirs)
            for answer in served(texts, return_kept=True):
                assert answer.kept is not None
                assert any(len(kept.tokens) < answer.num_tokens for kept in answer.kept)
                assert all("[MASK]" in kept.tokens for kept in answer.kept)


def test_an_encoder_gets_a_head_with_its_embeddings(tmp_path: Path, tokenizer_dir: Path) -> None:
    path = mask_folder(tmp_path / "folder", tokenizer_dir, model=AutoModel)
    assert task_for(str(path), "fill-mask") is FillMask
    head = FillMask.new_head([Example("", word) for word in WORDS])
    made = load_pretrained(str(path), head, None)
    assert not made.fine_tuned and "a choice among the 3 words of the labels" in str(made.note)
    save(made, path, tmp_path / "saved")
    rows = rows_with_masks()
    ids = made.model.spec.answers[TARGET_IDS]
    theirs = [each[:, ids] for each in theirs_of(tmp_path / "saved", rows)]
    assert_close(ours_of(made.model, rows), theirs)
    again = load_pretrained(str(tmp_path / "saved"), head, None)
    assert again.fine_tuned and again.model.spec == made.model.spec
    other = FillMask.new_head([Example("", word) for word in ("film", "house")])
    with pytest.raises(DataError, match=r"does not choose: house .it chooses among city"):
        load_pretrained(str(tmp_path / "saved"), other, None)


def test_for_other_tasks_a_language_model_is_an_encoder(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    path = str(mask_folder(tmp_path / "folder", tokenizer_dir))
    assert task_for(path, None) is TextClassification
    head = TextClassification.new_head([Example("", label) for label in ("a", "b")])
    made = load_pretrained(path, head, None)
    assert not made.fine_tuned and made.model.spec.task == "text-classification"
    with pytest.raises(DataError, match=r"have no labels.*; --task fill-mask takes the one it has"):
        load_pretrained(path, None, None, "text-classification")
    assert load_pretrained(path, None, None).model.spec.task == "fill-mask"
    labelled = tmp_path / "classifier"
    mask_folder(labelled, tokenizer_dir, model=AutoModelForSequenceClassification)
    with pytest.raises(ConfigError, match="has a head for text-classification: expected that task"):
        task_for(str(labelled), "fill-mask")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False: expected True"),
        ({"targets": "film"}, "targets is .*: expected a list of words"),
        ({"targets": ["film", "Film"]}, "'film' and 'Film', which are one token"),
        ({"targets": ["film", "two words"]}, "the word 'two words' is not one token"),
        ({"targets": ["film", "映"]}, "the word '映' is not one token"),
        ({"top_k": 0}, "top_k is 0: expected"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    tmp_path: Path, tokenizer_dir: Path, entries: dict[str, Any], message: str
) -> None:
    path = mask_folder(tmp_path / "folder", tokenizer_dir, **entries)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path, tokenizer_dir: Path) -> None:
    path = folder_of(tmp_path / "folder", tokenizer_dir, "modernbert", AutoModelForMaskedLM)
    with pytest.raises(CheckpointError, match="the tokenizer has no mask token"):
        load_checkpoint(path)
