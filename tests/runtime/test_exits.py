"""Rows that leave at exits: the same ones in every chain, with what the exits say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_texts, tiny_model, tiny_spec

from trbert_deploy import load
from trbert_deploy.batching import NO_PADDING, Padding
from trbert_deploy.bench.bundles import BenchOptions, bench_bundle, trace_bundle
from trbert_deploy.bench.timing import Rounds
from trbert_deploy.bench.tradeoff import EXITS, measure_tradeoff
from trbert_deploy.bundle.manifest import EXIT_LOGITS, HIDDEN_OUT, KEEP_LOGIT
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.evaluation.quality import evaluate_quality
from trbert_deploy.evaluation.sweep import best_of, sweep_thresholds
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.flops import dense_flops, reduced_flops
from trbert_deploy.modeling.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.heads.registry import require_exits
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import choose_by_rule, first_segment, walk_on
from trbert_deploy.reports.console.bench import quality_rows
from trbert_deploy.reports.html import draw_kept, render
from trbert_deploy.reports.plots.sweeps import draw_sweep, draw_tradeoff
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.exits import exit_of
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.token_classification import TAKES_LEXICON
from trbert_deploy.training.batches import load_batches
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.row_outputs import row_answers

#: All rows share a call.
ALL = Padding(share=1.0)
TEXTS = [row["text"] for row in make_texts(16, seed=1)]
PAIRS = [("who found the house?", text) for text in TEXTS]
#: Name -> what the model does, its cuts, and its texts.
MODELS: dict[str, tuple[dict[str, Any], str, list[Any]]] = {
    "labels": ({}, "0.5,2,3", TEXTS),
    "tags": ({"task": "token-classification", "labels": ("O", "B-X", "B-Y")}, "0.5,2", TEXTS),
    "scores": ({"task": "text-ranking", "labels": ("LABEL_0",)}, "1,3", PAIRS),
    "positions": (
        {"family": "mpnet", "token_types": 0, "pad_token_id": 1, "options": {"buckets": 32}},
        "1,2",
        TEXTS,
    ),
}


def give_exits(model: ReducedModel, rule: ExitRule) -> ReducedModel:
    """Random exits that decide clearly."""
    torch.manual_seed(0)
    model.set_reduction(model.reduction.with_exits(rule))
    with torch.no_grad():
        for parameter in model.exits.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model


@pytest.fixture(scope="module", params=MODELS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path
) -> Path:
    """A checkpoint with exits, and the bundle that was made of it."""
    changes, cuts, texts = MODELS[request.param]
    model = give_exits(tiny_model(cuts, **changes), ExitRule())
    place = tmp_path_factory.mktemp("exits") / request.param.replace(" ", "-") / "ckpt"
    samples = tuple(texts[:6])
    save_checkpoint(Checkpoint(model.eval(), tokenizer_dir, 64, samples=samples), place)
    export_bundle(place, place.with_name("bundle"))
    return place


def texts_of(checkpoint: Path) -> list[Any]:
    return MODELS[checkpoint.parent.name.replace("-", " ")][2]


def opened(checkpoint: Path, backend: str = "onnxruntime", **options: Any) -> Pipeline:
    return load(checkpoint.with_name("bundle"), backend, threads=1, **options)


@torch.no_grad()
def test_rows_leave_in_every_chain_as_they_do_in_a_walk(exported: Path) -> None:
    pipeline = opened(exported)
    rows = pipeline.tokenize(texts_of(exported))
    model, task = load_checkpoint(exported).model.eval(), pipeline.task
    training = [TrainingRow(row, 0) for row in rows]
    (batch,) = load_batches(training, [list(range(len(rows)))], torch.device("cpu"))
    early: list[Outputs] = []
    walked = walk_on(model, first_segment(model, batch), choose_by_rule(model), early)
    answers = [dict(row_answers(task, said, batch)) for said in [*early, walked.answer(model)]]
    confidences = sorted(task.confidence(answers[0][row]) for row in range(len(rows)))
    between = (confidences[7] + confidences[8]) / 2
    seen: set[int | None] = set()
    for rule in (ExitRule(), ExitRule(between), ExitRule(between, 2)):
        chains = [
            Chain(
                OnnxRuntimeBackend(pipeline.require_bundle(), BackendOptions(1), states_on=place),
                pipeline.reduction.with_exits(rule),
                4,
                padding=padding,
                task=task,
            )
            for place, padding in ((None, NO_PADDING), (None, ALL), ("cpu", ALL))
        ]
        point = {"exit_confidence": rule.confidence, "exit_patience": rule.patience}
        point["precision"] = "fp32"
        chains += [opened(exported, name, **point).chain for name in ("torch", "openvino")]
        for chain in chains:
            for index, result in enumerate(chain.run(rows)):
                said = [found[index] for found in answers]
                expected = exit_of(said[:-1], rule, task)
                assert result.exit == expected
                wanted = said[-1 if expected is None else expected]["logits"]
                scale = max(1.0, float(np.abs(wanted).max()))
                assert np.abs(result.outputs["logits"] - wanted).max() < 2e-4 * scale
                for cut, kept in enumerate(result.kept):
                    left = expected is not None and cut >= expected
                    lengths = dict(
                        zip(batch.rows.tolist(), walked.layouts[cut].lengths, strict=True)
                    )
                    assert len(kept) == (0 if left else lengths[index])
                seen.add(result.exit)
    assert {0, None} <= seen


def test_what_an_exit_says_is_an_output_of_the_graph_before_it(exported: Path) -> None:
    manifest = opened(exported).require_bundle().manifest
    for graph in manifest.graphs:
        names = [tensor.name for tensor in graph.outputs]
        at_cut = (
            graph.name.startswith("segment")
            and graph.name != f"segment_{len(manifest.reduction.cuts)}"
        )
        assert (EXIT_LOGITS in names) == at_cut
        if at_cut:
            assert names == [HIDDEN_OUT, KEEP_LOGIT, EXIT_LOGITS]


def test_a_checkpoint_and_a_bundle_keep_their_exits(exported: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(exported)
    rule = ExitRule(0.875, 3)
    checkpoint.model.set_reduction(checkpoint.model.reduction.with_exits(rule))
    save_checkpoint(checkpoint, tmp_path / "ckpt")
    again = load_checkpoint(tmp_path / "ckpt").model
    assert again.reduction.exits == rule
    for name, value in checkpoint.model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    export_bundle(tmp_path / "ckpt", tmp_path / "bundle")
    pipeline = load(tmp_path / "bundle")
    assert pipeline.reduction.exits == rule
    assert pipeline.to_the_end().reduction.exits == ExitRule()
    assert pipeline.at_threshold(0.25).reduction.exits == rule
    own = ReductionConfig.from_json(pipeline.reduction.to_json())
    assert own == pipeline.reduction


def test_rows_that_leave_cost_nothing_behind() -> None:
    model = tiny_model("1,3")
    spec, plain = model.spec, model.reduction
    exits = plain.with_exits(ExitRule())
    head = 2 * 32**2 + 2 * 32 * spec.num_logits
    assert (
        reduced_flops(spec, exits, [20, 9, 4]) == reduced_flops(spec, plain, [20, 9, 4]) + 2 * head
    )
    layer = dense_flops(spec, 20) - head
    policy = 2 * 20 * (32 * 32 + 32)
    assert reduced_flops(spec, exits, [20, 0, 0]) == layer / 4 + policy + 2 * head
    columns = [np.array([20, 20]), np.array([9, 0]), np.array([4, 0])]
    assert reduced_flops(spec, exits, columns).tolist() == [
        reduced_flops(spec, exits, [20, 9, 4]),
        reduced_flops(spec, exits, [20, 0, 0]),
    ]


@pytest.mark.parametrize("exported", ["tags"], indirect=True)
def test_tags_that_leave_are_answered_once(exported: Path) -> None:
    pipeline = opened(exported, exit_confidence=0.0)
    spec, reduction = pipeline.encoder, pipeline.reduction
    steps = reduced_flops(spec, reduction, [20, 0, 0]) - reduced_flops(
        spec, reduction, [20, 20, 20]
    )
    assert steps < 0  # no token is dropped in either, and mapped to where last states lie
    result = pipeline.run(pipeline.tokenize(TEXTS[:1]))[0]
    assert result.outputs["logits"].shape == (len(pipeline.tokenize(TEXTS[:1])[0]), 3)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Pipeline:
    model = give_exits(tiny_model("1,2"), ExitRule(0.6))
    place = tmp_path_factory.mktemp("sweep") / "ckpt"
    save_checkpoint(Checkpoint(model, tokenizer_dir, 64), place)
    export_bundle(place, place.with_name("bundle"))
    return load(place.with_name("bundle"), threads=1)


EXAMPLES = [Example(row["text"], row["label"], f"text {i}") for i, row in enumerate(make_texts(40))]


def test_a_sweep_goes_over_pairs(labels: Pipeline) -> None:
    report = sweep_thresholds(labels, EXAMPLES)
    pairs = [point for point in report.points if point.exit_confidence is not None]
    assert len(pairs) >= 5 and len(report.to_the_end) + len(pairs) == len(report.points)
    for point in (report.to_the_end[2], pairs[-1]):
        alone = labels.at_threshold(point.threshold).to_the_end()
        if point.exit_confidence is not None:
            alone = load(
                labels.path,
                threads=1,
                threshold=point.threshold,
                exit_confidence=point.exit_confidence,
            )
        quality = evaluate_quality(alone, EXAMPLES)
        assert quality.flops_speedup == point.quality.flops_speedup
        assert quality.reduced.score == point.quality.reduced.score
    same = {p.threshold: p.quality.flops_speedup for p in report.to_the_end}
    assert all(p.quality.flops_speedup >= same[p.threshold] for p in pairs)
    costs = [point.quality.flops_speedup for point in report.front]
    scores = [point.quality.reduced.score for point in report.front]
    assert costs == sorted(costs) and scores == sorted(scores, reverse=True)
    told = [text.get_text() for text in draw_sweep(report).legends[0].get_texts()]
    assert "best of both" in told and "reduced, with exits" in told
    assert any("exit_confidence" in point for point in report.to_json()["sweep"])


def test_a_bench_draws_the_front_of_both(labels: Pipeline) -> None:
    report = measure_tradeoff(labels, EXAMPLES[:12])
    assert report.of(EXITS) and all(point.exit_confidence is not None for point in report.of(EXITS))
    assert all(point.exit_confidence is None for point in report.of("reduced"))
    assert "exits above" in report.of(EXITS)[0].setting
    assert {point.model for point in report.front} <= {"reduced", EXITS}
    told = [text.get_text() for text in draw_tradeoff(report).legends[0].get_texts()]
    assert "best of both" in told


def test_the_front_is_what_nothing_beats() -> None:
    points = [(1.0, 0.5), (2.0, 0.9), (3.0, 0.8), (4.0, 0.9), (5.0, 0.95), (1.0, 0.6)]
    front = best_of(points, lambda point: point[0], lambda point: point[1])
    assert front == [(5.0, 0.95), (2.0, 0.9), (1.0, 0.6)]


def test_exits_are_refused_for_answers_that_do_not_tell_how_sure_they_are() -> None:
    for changes in (
        {"task": "question-answering", "labels": ("start", "end")},
        {"task": "feature-extraction", "labels": ()},
        {"answers": {"problem": "regression"}},
    ):
        model = tiny_model("1,2", **changes)
        with pytest.raises(ConfigError, match="do not tell how sure they are"):
            model.set_reduction(model.reduction.with_exits(ExitRule()))
    tags = {
        "task": "token-classification",
        "labels": ("O", "B-X"),
        "answers": {TAKES_LEXICON: True},
    }
    with pytest.raises(ConfigError, match="takes a lexicon, which exits would not hear"):
        require_exits(tiny_spec(**tags))
    with pytest.raises(ConfigError, match="exits stand at cuts, and there are none"):
        ReductionConfig().with_exits(ExitRule())


def test_reports_say_which_texts_left(labels: Pipeline) -> None:
    rows = labels.tokenize([each.text for each in EXAMPLES])
    first = labels.at(OperatingPoint(exit_confidence=0.0)).run(rows)
    sure = float(np.median([labels.task.confidence(result.outputs) for result in first]))
    point = OperatingPoint(exit_confidence=sure)
    labels = labels.at(point)
    results = labels.run(rows)
    left = tuple(np.mean([result.exit == cut for result in results]) for cut in range(2))
    assert 0.0 < sum(left) < 1.0  # some leave, some stay
    quality = evaluate_quality(labels, EXAMPLES)
    assert quality.left_share == pytest.approx(left)
    told = {name: cells for name, *cells in quality_rows(quality)}
    assert told["texts that left early"] == ["", f"{left[0]:.1%}, {left[1]:.1%}"]
    assert evaluate_quality(labels.to_the_end(), EXAMPLES[:4]).left_share == ()

    options = BenchOptions(
        (12,),
        backend="onnxruntime",
        threads=1,
        point=point,
        rounds=Rounds.exactly(3),
        data=EXAMPLES,
    )
    bench = bench_bundle(labels.path, options)
    (measured,) = bench.backends[0].points
    assert len(measured.left) == 2
    assert measured.measured_speedup == measured.dense.mean_ms / measured.reduced.mean_ms
    texts = trace_bundle(labels.path, options)
    assert [text.exit for text in texts] == [result.exit for result in results]
    page = render(bench, texts, quality=quality)
    assert "texts that left early" in page and "mean to 95th percentile" in page
    shown = [text.exit for text in texts[:6]]
    for cut, name in enumerate(("before layer 1", "before layer 2")):
        assert page.count(f"left with the answer of the exit {name}") == shown.count(cut)
    panels = draw_kept(texts, (1.0, 2.0)).axes
    counts = [sum(patch.get_height() for patch in panel.patches) for panel in panels]
    assert counts == [
        sum(text.exit is None or text.exit >= place for text in texts) for place in range(3)
    ]
