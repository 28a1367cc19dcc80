"""Ranking: scores, what is measured by query, and how a checkpoint says what a score is."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import make_texts, tiny_spec
from hf_folders import SMALL_FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from training_in_tests import options_for, with_recipe
from transformers import AutoConfig, AutoModelForSequenceClassification, BertModel

from trbert_deploy import load
from trbert_deploy.bench.bundles import BenchOptions, bench_bundle
from trbert_deploy.bench.timing import Rounds
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.cli import cli
from trbert_deploy.compress.texts import TEST, TRAIN, VALIDATION, write_split
from trbert_deploy.errors import ConfigError, DataError, OutputError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from trbert_deploy.modeling.heads.registry import build_head
from trbert_deploy.runtime.samples import are_random, sample_rows
from trbert_deploy.tasks.activations import IDENTITY, SIGMOID
from trbert_deploy.tasks.examples import Example, shuffled_units
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.tasks.text_ranking import TextRanking
from trbert_deploy.training.data import split_validation
from trbert_deploy.training.prepare import prepare
from trbert_deploy.training.run import train

#: Activation -> the module of PyTorch that it is in.
_MODULES = {SIGMOID: "activation", IDENTITY: "linear"}
ENCODING: Any = SimpleNamespace(ids=[1, 2, 3])


def outputs(value: float) -> dict[str, np.ndarray]:
    return {LOGITS: np.array([value], np.float32)}


def pair(query: str, relevance: object = None) -> Example:
    target = None if relevance is None else str(relevance)
    return Example((query, "a passage"), target, "line 1")


def test_scores_are_as_the_checkpoint_says() -> None:
    assert TextRanking().decode(outputs(2.0), ENCODING).score == pytest.approx(0.880797, abs=1e-5)
    raw = TextRanking(IDENTITY)
    assert raw.decode(outputs(-7.5), ENCODING).score == -7.5
    assert raw.summary(raw.decode(outputs(-7.5), ENCODING)) == "-7.500"
    assert raw.agreement(outputs(4.0), outputs(3.0)) == 0.75
    assert TextRanking().agreement(outputs(50.0), outputs(40.0)) == pytest.approx(1.0)
    assert raw.agreement(outputs(math.nan), outputs(3.0)) == 0.0
    assert raw.divergence(outputs(1.0), outputs(3.0)) == 4.0
    with pytest.raises(OutputError, match="nan"):
        raw.decode(outputs(math.nan), ENCODING)
    with pytest.raises(ConfigError, match="the activation of the score is Tanh: expected Sigmoid"):
        TextRanking("Tanh")


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.integers(-99, 99)), min_size=2, max_size=14,
                 unique_by=lambda each: each[1]),
        min_size=1, max_size=4,
    ),
    st.randoms(),
)  # fmt: skip
def test_queries_are_measured_on_their_own(queries: list[Any], mix: Any) -> None:
    task = TextRanking()
    rows = [(q, *each) for q, passages in enumerate(queries) for each in passages]
    mix.shuffle(rows)
    targets = np.array([(relevance, query) for query, relevance, _ in rows], np.float32)
    answers = [outputs(score / 10) for _, _, score in rows]
    gains, ranks = [], []
    for passages in queries:
        relevance, scores = np.array(passages, float).T
        if relevance.max() > 0:
            gains.append(ndcg_score([relevance], [scores], k=10))
            first = next(place for place in np.argsort(-scores) if relevance[place] > 0)
            rank = 1 + int((scores > scores[first]).sum())
            ranks.append(1 / rank if rank <= 10 else 0.0)
    if not ranks:
        with pytest.raises(DataError, match="no query has a relevant passage"):
            task.metrics(answers, targets)
        return
    found = task.metrics(answers, targets)
    assert found["mrr_10"] == pytest.approx(np.mean(ranks))
    assert found["ndcg_10"] == pytest.approx(np.mean(gains))
    assert len(task.statistics(answers, targets)) == len(ranks)


def test_equal_scores_earn_nothing() -> None:
    targets = np.array([(1, 0), (0, 0), (0, 0)], np.float32)
    assert TextRanking().metrics([outputs(0.5)] * 3, targets)["mrr_10"] == pytest.approx(1 / 3)


def test_targets_name_queries() -> None:
    task = TextRanking()
    found = task.targets([pair("a", 1), pair("b", 0), pair("a", 0.5)])
    assert found.tolist() == [[1, 0], [0, 1], [0.5, 0]]
    for example, message in (
        (pair("a"), 'line 1: expected a field "label" beside the texts'),
        (pair("a", "good"), "line 1: the label is 'good': expected a number"),
        (Example("one", "1", "line 1"), "line 1 is one text: expected a query and a passage"),
    ):
        with pytest.raises(DataError, match=message):
            task.targets([example])


def test_a_new_head_is_one_score_of_pairs() -> None:
    head = TextRanking.new_head([pair("a", 1), pair("a", 0), pair("b", 0.5)])
    assert (head.task, head.labels) == ("text-ranking", ("LABEL_0",))
    assert head.answers == {"activation": SIGMOID}
    assert head.found == ("0", "0.5", "1")
    for example, message in (
        (pair("a", "good"), "line 1: the label is 'good': expected a number, how relevant the pas"),
        (Example("one", "1", "line 1"), "line 1 is one text: expected a query and a passage"),
    ):
        with pytest.raises(DataError, match=message):
            TextRanking.new_head([pair("a", 1), example])


def test_pairs_of_a_first_text_stay_together() -> None:
    queries = "abcabcabc"
    examples = [pair(query) for query in queries] + [Example(f"text {n}") for n in range(7)]
    units = shuffled_units(examples, seed=0)
    assert sorted(units) == [[0, 3, 6], [1, 4, 7], [2, 5, 8], *([n] for n in range(9, 16))]
    assert sorted(shuffled_units(examples[:9], seed=0)) == [[n] for n in range(9)]


def test_queries_are_not_divided_between_training_and_validation(tmp_path: Path) -> None:
    examples = [pair(f"query {n % 30}", 1) for n in range(300)]
    for parts in (
        split_validation(examples, seed=0),
        [
            [json.loads(line)["text"] for line in (tmp_path / name).read_text().splitlines()]
            for name in (TRAIN, VALIDATION, TEST)
            if write_split(examples, tmp_path, judge_by_labels=True)
        ],
    ):
        queries = [{e if isinstance(e, str) else e.text[0] for e in part} for part in parts]
        assert sum(map(len, parts)) == 300 and all(parts)
        assert sum(map(len, queries)) == 30  # none in two parts
        assert len(parts[1]) == 30


@pytest.mark.parametrize("activation", [SIGMOID, IDENTITY])
def test_the_head_learns_from_teacher_and_labels(activation: str) -> None:
    spec = tiny_spec(task="text-ranking", labels=("LABEL_0",), answers={"activation": activation})
    head = build_head(spec)
    taught, answered = {LOGITS: torch.tensor([[2.0], [-1.0]])}, {LOGITS: torch.tensor([[0.0]] * 2)}
    target = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    none = torch.full((2, 2), torch.nan)
    assert head.loss(taught, none, taught).abs().max() < 1e-6
    assert (head.loss(answered, None, taught) > 0).all()
    expected = torch.full((2,), math.log(2.0))
    assert torch.allclose(head.loss(answered, target), expected)
    assert head.correct(taught, target).tolist() == [1.0, 1.0]
    assert head.correct(taught, none).tolist() == [0.0, 0.0]
    assert head.targets_or_answers(none, taught).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert head.path_loss(answered, target, taught).shape == (1, 2)
    assert torch.equal(
        head.path_loss(answered, target, taught), head.path_loss(answered, None, taught)
    )


def test_margins_between_passages_count_where_a_sigmoid_says_nothing() -> None:
    head = build_head(tiny_spec(task="text-ranking", labels=("LABEL_0",)))
    taught = torch.tensor([[-9.0], [-12.0], [-15.0]])

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return head.loss({LOGITS: logits}, None, {LOGITS: taught[: len(logits)]})

    assert loss(taught.flip(0)).min() >= 0
    assert loss(taught.flip(0))[0] > loss(taught.flip(0))[1] + 0.1  # whose margins are less wrong
    assert loss(taught - 3.0).max() < 1e-3  # all margins are the same
    assert loss(taught[:1] - 3.0).max() < 1e-3  # no other passage
    paths = head.path_loss({LOGITS: torch.cat([taught, taught.flip(0)])}, None, {LOGITS: taught})
    assert paths.shape == (2, 3) and torch.allclose(paths[1] - paths[0], loss(taught.flip(0)))


def folder_of(path: Path, tokenizer_dir: Path, family: str, **entries: Any) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, **SMALL_FAMILIES[family], id2label={0: "LABEL_0"}, **entries
    )
    AutoModelForSequenceClassification.from_config(config).eval().save_pretrained(path)
    shutil.copytree(tokenizer_dir, path, dirs_exist_ok=True)
    return path


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # transformers' DeBERTa
@pytest.mark.parametrize("family", sorted(SMALL_FAMILIES))
def test_one_logit_of_every_family_is_a_score(
    tmp_path: Path, tokenizer_dir: Path, family: str
) -> None:
    folder = folder_of(tmp_path / "folder", tokenizer_dir, family)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.model.spec.task == "text-ranking"
    save_checkpoint(checkpoint, tmp_path / "saved")
    assert load_checkpoint(tmp_path / "saved").model.spec == checkpoint.model.spec


@pytest.mark.parametrize("activation", [SIGMOID, IDENTITY])
def test_a_bundle_scores_as_transformers_does(
    tmp_path: Path, tokenizer_dir: Path, activation: str
) -> None:
    names = {"sentence_transformers": {"activation_fn": f"torch.nn.modules.x.{activation}"}}
    folder = folder_of(tmp_path / "folder", tokenizer_dir, "bert", **names)
    assert task_of(load_checkpoint(folder).model.spec).activation == activation  # type: ignore[attr-defined]
    save_checkpoint(load_checkpoint(folder), tmp_path / "saved")
    export_bundle(tmp_path / "saved", tmp_path / "bundle")
    served = load(tmp_path / "bundle", threads=1)
    texts = [row["text"] for row in make_texts(6, seed=9)]
    pairs = list(zip(texts[:3], texts[3:], strict=True))
    reference = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for answer, row in zip(served(pairs), served.tokenize(pairs), strict=True):
        with torch.no_grad():
            logit = reference(
                input_ids=torch.from_numpy(row.input_ids)[None],
                token_type_ids=torch.from_numpy(row.token_type_ids)[None],
            ).logits[0, 0]
        expected = float(logit.sigmoid() if activation == SIGMOID else logit)
        assert json.loads(json.dumps(answer.to_json()))["score"] == pytest.approx(
            expected, abs=1e-4
        )


@pytest.mark.parametrize("activation", [SIGMOID, IDENTITY])
def test_documents_are_ranked_as_by_a_cross_encoder(
    tmp_path: Path, tokenizer_dir: Path, activation: str
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    entry = {"activation_fn": f"torch.nn.modules.{_MODULES[activation]}.{activation}"}
    folder = folder_of(tmp_path / "folder", tokenizer_dir, "bert", sentence_transformers=entry)
    export_bundle(folder, tmp_path / "bundle")
    served = load(tmp_path / "bundle", threads=1)
    documents = [row["text"] for row in make_texts(7, seed=4)]
    save_checkpoint(load_checkpoint(folder), tmp_path / "saved")
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "saved"))
    for options in ({}, {"top_k": 3, "return_documents": True}):
        expected = theirs.rank("a film", documents, **options)
        found = served.rank("a film", documents, **options)
        assert [each["corpus_id"] for each in found] == [each["corpus_id"] for each in expected]
        for ours, wanted in zip(found, expected, strict=True):
            assert set(ours) == set(wanted) and ours.get("text") == wanted.get("text")
            assert ours["score"] == pytest.approx(float(wanted["score"]), abs=1e-4)
    with pytest.raises(DataError, match="no documents to rank: expected at least one"):
        served.rank("a film", [])
    with pytest.raises(DataError, match="document 2 is empty"):
        served.rank("a film", ["a text", " "])
    with pytest.raises(ConfigError, match="top_k is 0"):
        served.rank("a film", documents, top_k=0)


def encoder_of(path: Path, tokenizer_dir: Path) -> Path:
    """An encoder without a head."""
    folder_of(path, tokenizer_dir, "bert")
    reference = AutoModelForSequenceClassification.from_pretrained(path)
    BertModel(reference.config).save_pretrained(path)
    return path


def write_pairs(path: Path, count: int = 160) -> str:
    """Two good and two bad passages for each query, of which the good ones are relevant."""
    texts = make_texts(count)
    rows = [
        {
            "query": f"film {place // 4}",
            "passage": row["text"],
            "label": int(row["label"] == "good"),
        }
        for place, row in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.slow
def test_an_encoder_learns_to_rank(tmp_path: Path, tokenizer_dir: Path) -> None:
    encoder = encoder_of(tmp_path / "encoder", tokenizer_dir)
    options = options_for(tmp_path)
    changes = {"model": str(encoder), "train": write_pairs(tmp_path / "pairs.jsonl")}
    options = replace(options, task="text-ranking", validation=None, **changes)
    notes: list[str] = []
    recipe = {"stages": ("teacher",), "teacher": {"epochs": 12.0}}
    report = train(with_recipe(options, **recipe), tmp_path / "ckpt", note=notes.append)
    assert any("a new one is trained for the relevance of passages" in note for note in notes)
    assert report.measure == "mrr_10"
    assert report.stages["teacher"].dense_score == 1.0
    trained = load_checkpoint(tmp_path / "ckpt").model.spec
    assert (trained.task, trained.answers) == ("text-ranking", {"activation": SIGMOID})
    reference = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ckpt")
    assert reference.config.num_labels == 1


@pytest.mark.parametrize(
    ("task", "head", "line", "error", "message"),
    [
        ("rank", False, {}, ConfigError, "unknown task 'rank': expected one of text-classif"),
        ("text-classification", True, {}, ConfigError, "has a head for text-ranking: expected th"),
        ("text-ranking", False, {"label": "good"}, DataError, "the label is 'good': expected a nu"),
        ("text-ranking", False, {"passage": None}, DataError, "is one text: expected a query and"),
        (None, True, {"passage": None}, DataError, "is one text: expected a query and"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    tmp_path: Path,
    tokenizer_dir: Path,
    task: str | None,
    head: bool,
    line: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    made = folder_of(tmp_path / "model", tokenizer_dir, "bert") if head else None
    model = made or encoder_of(tmp_path / "model", tokenizer_dir)
    data = tmp_path / "pairs.jsonl"
    write_pairs(data, 20)
    row = {"query": "a film", "passage": "a text", "label": 1, **line}
    data.write_text(data.read_text() + json.dumps(row) + "\n")
    options = replace(options_for(tmp_path), model=str(model), train=str(data))
    options = replace(options, task=task, validation=None)
    with pytest.raises(error, match=message):
        train(options, tmp_path / "ckpt")
    assert not (tmp_path / "ckpt").exists()


def test_a_reranker_is_measured_on_pairs(
    tmp_path: Path, tokenizer_dir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trbert_deploy.training.prepare.NUM_SAMPLES", 4)
    folder = folder_of(tmp_path / "folder", tokenizer_dir, "bert")
    data = write_pairs(tmp_path / "pairs.jsonl", 40)
    options = replace(options_for(tmp_path), model=str(folder), train=data, validation=data)
    (tmp_path / "scratch").mkdir()
    prepared = prepare(options, tmp_path / "scratch", torch.device("cpu"), lambda note: None)
    samples = prepared.checkpoint.samples
    assert len(samples) == 4 and all(sample[0].startswith("film ") for sample in samples)
    save_checkpoint(prepared.checkpoint, tmp_path / "ckpt")
    assert load_checkpoint(tmp_path / "ckpt").samples == samples
    report = export_bundle(tmp_path / "ckpt", tmp_path / "bundle")
    assert report.has_samples and not report.random_rows
    bundle = Bundle.open(tmp_path / "bundle")
    assert tuple(bundle.samples()) == samples and not are_random(bundle)
    for row in sample_rows(bundle, [16, 32], 2):
        assert row.token_type_ids[0] == 0 and row.token_type_ids[-1] == 1
    notes: list[str] = []
    load(bundle, threads=1, latency_budget_ms=1e6, note=notes.append)
    assert notes and not any("random" in note for note in notes)
    measured = bench_bundle(
        tmp_path / "bundle", BenchOptions(lengths=(16, 48), rounds=Rounds.exactly(1), threads=1)
    )
    assert [point.length for point in measured.backends[0].points] == [16, 48]
    assert measured.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_a_reranker_is_trained_served_and_judged(
    tmp_path: Path, tokenizer_dir: Path, labelled: bool
) -> None:
    folder = folder_of(tmp_path / "folder", tokenizer_dir, "bert")
    rows = [
        {"query": f"film {place // 4}", "passage": row["text"]}
        | ({"label": int(row["label"] == "good")} if labelled else {})
        for place, row in enumerate(make_texts(160))
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = replace(options_for(tmp_path), model=str(folder), train=str(data), validation=None)
    report = train(options, tmp_path / "ckpt")
    assert report.measure == ("mrr_10" if labelled else "agreement")
    assert report.stages["hard"].flops_speedup > 1.2
    export_bundle(tmp_path / "ckpt", tmp_path / "bundle")
    figures = tmp_path / "figures.json"
    command = ["evaluate", str(tmp_path / "bundle"), "--data", str(data), "--json", str(figures)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(cli, [*command, "--teacher", str(folder)])
    assert done.exit_code == 0, done.output
    found = json.loads(figures.read_text())
    assert found["rows"] == 160 and found["agreement"] > 0.8
    assert next(iter(found["dense"])) == report.measure
    done = CliRunner().invoke(cli, ["predict", str(tmp_path / "bundle"), "--input", str(data)])
    assert [set(json.loads(line)) for line in done.stdout.splitlines()] == [
        {"score", "num_tokens"}
    ] * 160
