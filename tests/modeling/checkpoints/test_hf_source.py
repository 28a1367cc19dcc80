"""Checkpoints as they come: what is read, and what is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LABELS, make_texts
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForSequenceClassification,
)

from trbert_deploy import load
from trbert_deploy.errors import CheckpointError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trbert_deploy.modeling.checkpoints.hf_source import open_source
from trbert_deploy.modeling.checkpoints.pretrained import load_pretrained
from trbert_deploy.modeling.checkpoints.tokenizer import tokenizer_directory
from trbert_deploy.tasks.task import NewHead

TEXTS = [row["text"] for row in make_texts(6)]


def config(**changes: Any) -> BertConfig:
    values: dict[str, Any] = {
        "vocab_size": 220, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 64,
        "id2label": dict(enumerate(LABELS)), "label2id": {"bad": 0, "good": 1},
    }  # fmt: skip
    return BertConfig(**{**values, **changes})


def write(
    path: Path,
    tokenizer_dir: Path,
    model_class: Any = BertForSequenceClassification,
    **changes: Any,
) -> Path:
    """A folder as somebody has it: model and tokenizer, and nothing of ours."""
    torch.manual_seed(0)
    model = model_class(config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    model.save_pretrained(path)
    shutil.copytree(tokenizer_dir, path, dirs_exist_ok=True)
    return path


def entries_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())


def change(path: Path, **changes: Any) -> None:
    (path / "config.json").write_text(json.dumps({**entries_of(path), **changes}))


def theirs(path: Path, texts: list[str]) -> np.ndarray:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        return model(**inputs).logits.softmax(-1).numpy()


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_a_fine_tuned_folder_becomes_a_dense_bundle(
    tmp_path: Path, tokenizer_dir: Path, activation: str
) -> None:
    path = write(tmp_path / "model", tokenizer_dir, hidden_act=activation)
    report = export_bundle(path, tmp_path / "bundle")
    assert report.is_dense and [graph.graph for graph in report.graphs] == ["dense"]
    predictions = load(tmp_path / "bundle", threads=1)(TEXTS)
    scores = [list(prediction.scores.values()) for prediction in predictions]
    assert np.allclose(scores, theirs(path, TEXTS), atol=1e-4)


def test_the_command_says_that_it_is_dense_and_what_comes_next(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    write(tmp_path / "model", tokenizer_dir)
    commands = [
        ["export", "model"],
        ["bench", "--lengths", "16", "--rounds", "1"],
        ["predict", "--text", "a wonderful film", "--kept"],
    ]
    outputs = []
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "trbert_deploy", *command],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.append(" ".join((done.stdout + done.stderr).split()))
    assert "model has no policies: the bundle is the dense model" in outputs[0]
    assert "trbert-deploy train --model model" in outputs[0]
    assert "timed on a sentence that is repeated" in outputs[1]
    assert json.loads(outputs[2])["kept"] == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read_and_written_as_float32(
    tmp_path: Path, tokenizer_dir: Path, dtype: torch.dtype
) -> None:
    path = write(tmp_path / "model", tokenizer_dir)
    AutoModelForSequenceClassification.from_pretrained(path).to(dtype).save_pretrained(path)
    made = load_checkpoint(path)
    assert all(tensor.dtype == torch.float32 for tensor in made.model.state_dict().values())
    save_checkpoint(made, tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert again.dtype == torch.float32
    assert np.allclose(theirs(tmp_path / "again", TEXTS), theirs(path, TEXTS), atol=1e-5)


def test_labels_without_names_and_unknown_entries_survive(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    names = {"0": "LABEL_0", "1": "LABEL_1"}
    path = write(tmp_path / "model", tokenizer_dir)
    change(path, id2label=names, label2id={"LABEL_0": 0, "LABEL_1": 1}, of_somebody={"note": [1]})
    made = load_checkpoint(path)
    assert made.model.spec.labels == ("LABEL_0", "LABEL_1")
    save_checkpoint(made, tmp_path / "again")
    entries = entries_of(tmp_path / "again")
    assert entries["of_somebody"] == {"note": [1]} and entries["id2label"] == names


@pytest.mark.parametrize("model_class", [AutoModel, BertForMaskedLM, BertForNextSentencePrediction])
def test_what_has_no_head_of_ours_gets_a_new_one_that_is_said_aloud(
    tmp_path: Path, tokenizer_dir: Path, model_class: Any
) -> None:
    make = AutoModel.from_config if model_class is AutoModel else model_class
    path = write(tmp_path / "model", tokenizer_dir, make)
    made = load_pretrained(str(path), NewHead("text-classification", ("a", "b", "c")), None)
    assert not made.fine_tuned and made.model.spec.labels == ("a", "b", "c")
    assert made.note is not None and "a new one is trained for the labels" in made.note
    encoder = AutoModel.from_pretrained(path)
    expected = encoder.embeddings.word_embeddings.weight
    assert torch.equal(made.model.encoder.embeddings.token.weight, expected)
    assert float(made.model.head.classifier.weight.detach().std()) < 0.04  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "entries",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"},
        {"problem_type": "multi_label_classification"},
    ],
)
def test_a_new_head_does_not_answer_as_an_earlier_one_did(
    tmp_path: Path, tokenizer_dir: Path, entries: dict[str, Any]
) -> None:
    path = write(tmp_path / "encoder", tokenizer_dir, AutoModel.from_config)
    change(path, **entries)  # as the encoder of a reranker has them, saved without its head
    made = load_pretrained(str(path), NewHead("text-classification", ("a", "b")), None)
    assert made.model.spec.problem == ""
    with TemporaryDirectory() as scratch:
        tokenizer = tokenizer_directory(str(path), Path(scratch))
        save_checkpoint(
            Checkpoint(made.model, tokenizer, 64, hf_config=made.hf_config), tmp_path / "saved"
        )
    spec = load_checkpoint(tmp_path / "saved").model.spec
    assert (spec.task, spec.problem, spec.labels) == ("text-classification", "", ("a", "b"))


class BertForCauses(BertForSequenceClassification):
    """A head of somebody's own."""


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (BertForCauses, {}, "has the head ForCauses: expected one that is"),
    (BertForPreTraining, {}, "has no head that answers: expected one that is computed here"),
    (AutoModel.from_config, {}, "has no head that answers: .* trbert-deploy train --model"),
]  # fmt: skip


@pytest.mark.parametrize(("model_class", "changes", "message"), REFUSED)
def test_answers_that_are_not_computed_are_refused_by_name(
    tmp_path: Path, tokenizer_dir: Path, model_class: Any, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "model", tokenizer_dir, model_class, **changes)
    for reads in (lambda: export_bundle(path, tmp_path / "bundle"), lambda: load_checkpoint(path)):
        with pytest.raises(CheckpointError, match=message) as caught:
            reads()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_the_command_refuses_in_one_line(tmp_path: Path, tokenizer_dir: Path) -> None:
    write(tmp_path / "model", tokenizer_dir, BertForCauses)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_texts(20)))
    compress = ["compress", "model", "--texts", "texts.jsonl"]
    for command in (["export", "model"], compress, ["evaluate", "model", "--data", "texts.jsonl"]):
        done = subprocess.run(
            [sys.executable, "-m", "trbert_deploy", *command],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        (line,) = [text for text in done.stderr.splitlines() if text.startswith("error:")]
        assert "has the head ForCauses" in line and "Traceback" not in done.stderr


def test_a_sentence_transformers_folder_makes_embeddings_or_gets_a_new_head() -> None:
    from trbert_deploy.demo.quickstart import packaged_encoder

    source = open_source(str(packaged_encoder()))
    assert source.is_bare and source.answers_anything
    source.require_answers()
    spec = source.spec()
    assert (spec.task, spec.labels) == ("feature-extraction", ())
    assert spec.answers == {"pooling": "mean", "normalize": True}
    assert source.max_length == 256
    head = NewHead("text-classification", ("bad", "good"))
    assert source.spec(head).labels == ("bad", "good")


def test_an_unknown_tensor_of_the_encoder_is_refused(tmp_path: Path, tokenizer_dir: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = write(tmp_path / "model", tokenizer_dir)
    tensors = load_file(path / "model.safetensors")
    tensors["bert.encoder.layer.0.adapter.weight"] = torch.zeros(2, 2)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layer\.0\.adapter\.weight, which bert does not"):
        load_checkpoint(path)


_SMALL: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40,
}  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "bert", "hidden_size": "wide"}, "cannot be loaded: .*hidden_size"),
        ({"model_type": "bert", "num_hidden_layers": None}, "cannot be loaded: .*num_hidden_lay"),
        ({"model_type": "bert", "num_attention_heads": 3}, "3 heads in a width of 16: expected a"),
        (
            {"model_type": "deberta-v2", "relative_attention": True, "position_buckets": None},
            "lacks an entry of deberta-v2, or has one of a wrong kind",
        ),
        (
            {"model_type": "modernbert", "rope_parameters": {}, "global_rope_theta": None},
            "lacks an entry of modernbert, or has one of a wrong kind",
        ),
    ],
)
def test_an_entry_of_a_wrong_kind_is_refused_in_one_line(
    tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**_SMALL, **entries}))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(str(tmp_path)).spec()
    assert "\n" not in str(caught.value)
