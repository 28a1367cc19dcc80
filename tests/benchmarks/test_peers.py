"""The benchmark against peers, on a tiny model: all say the same, and the figures are written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peers
import pytest
import random_model
from click.testing import CliRunner
from conftest import make_texts, tiny_model
from contenders import CONTENDERS, Workshop
from matplotlib.image import imread

from trbert_deploy import load
from trbert_deploy.errors import ConfigError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.tasks.text_classification import LOGITS

ROW = "ours, reduced, ONNX Runtime fp32"
EXITS = "ours, reduced with exits, ONNX Runtime fp32"


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(peers.main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_contenders_answer_alike_and_are_written_down(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in make_texts(6, seed=0)))
    figures, plot = tmp_path / "peers.json", tmp_path / "peers.png"
    code, output = run(
        tiny_checkpoint, "--data", data, "--lengths", 16, "--texts", 2, "--batch", 3,
        "--rounds", 1, "--only", "ONNX Runtime fp32", "--json", figures, "--plot", plot,
    )  # fmt: skip
    assert code == 0, output
    written = json.loads(figures.read_text())
    assert list(written["cases"]) == ["16 tokens", "batch of 3 texts"]
    assert f"left out: {EXITS}" in output
    wanted = [name for name in CONTENDERS if "ONNX Runtime fp32" in name and name != EXITS]
    for case in written["cases"].values():
        assert list(case) == [peers.REFERENCE, *wanted]
        for name, timing in case.items():
            assert timing["same_labels"] == 1.0 or name == ROW
            assert 0 < timing["mean"] <= timing["p95"]
            assert timing["speedup"] > 0
        assert case[peers.BASELINE]["speedup"] == 1.0
    assert imread(plot).ndim == 3


def test_rows_leave_at_exits_where_that_is_timed_alone(tokenizer_dir: Path, tmp_path: Path) -> None:
    model = tiny_model("1,3")
    model.set_reduction(model.reduction.with_exits(ExitRule(confidence=1e-6)))  # all leave at once
    save_checkpoint(Checkpoint(model.eval(), tokenizer_dir, 64), tmp_path / "ckpt")
    shop = Workshop(tmp_path / "ckpt", tmp_path, 1, [])
    pipeline = load(shop.bundle, threads=1)
    rows = pipeline.tokenize([row["text"] for row in make_texts(3)])
    early = [result.outputs[LOGITS] for result in pipeline.run(rows)]
    late = [result.outputs[LOGITS] for result in pipeline.to_the_end().run(rows)]
    assert not np.allclose(early, late)
    np.testing.assert_allclose(CONTENDERS[EXITS](shop)(rows), early, atol=1e-5)
    np.testing.assert_allclose(CONTENDERS[ROW](shop)(rows), late, atol=1e-5)


def test_graphs_of_other_tools_are_contenders(tiny_checkpoint: Path, tmp_path: Path) -> None:
    data, figures = tmp_path / "texts.jsonl", tmp_path / "peers.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in make_texts(4, seed=0)))
    other = Workshop(tiny_checkpoint, tmp_path, 1, []).plain_graph
    arguments = [tiny_checkpoint, "--data", data, "--lengths", 16, "--texts", 2, "--batch", 0]
    arguments += ["--rounds", 1, "--only", peers.REFERENCE, "--json", figures]
    code, output = run(*arguments, "--graph", f"another=tool={other}")
    assert code == 0, output
    (case,) = json.loads(figures.read_text())["cases"].values()
    assert list(case) == [peers.REFERENCE, "another=tool"]
    assert case["another=tool"]["same_labels"] == 1.0
    ours = segment_of(tiny_checkpoint, tmp_path)
    for graph, message in (
        (tmp_path / "missing.onnx", "error: ONNX Runtime cannot load"),
        (data, "error: ONNX Runtime cannot load"),
        (ours, "expected some of input_ids, token_type_ids, attention_mask, and logits"),
    ):
        code, output = run(*arguments, "--graph", f"another={graph}")
        assert code == 1 and message in output
    for wrong in ("another", f"={other}", f"{peers.REFERENCE}={other}"):
        code, output = run(*arguments, "--graph", wrong)
        assert code == 2 and "expected NAME=FILE, with a name of its own" in output


def segment_of(checkpoint: Path, path: Path) -> Path:
    """A graph that is no dense model."""
    export_bundle(checkpoint, path / "bundle")
    return path / "bundle" / "segment_1.onnx"


def test_rows_longer_than_the_model_takes_are_refused(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "a film"}\n')
    code, output = run(tiny_checkpoint, "--data", data, "--lengths", 9999)
    assert code == 1
    assert "length 9999" in output


def test_a_random_model_keeps_what_it_is_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [
        "--like", tiny_checkpoint, "--kept", "0.5,0.1", "--layers", 6, "--width", 48,
        "--heads", 4, "--output", tmp_path / "random",
    ]  # fmt: skip
    result = CliRunner().invoke(random_model.main, [str(argument) for argument in command])
    assert result.exit_code == 0, result.output
    spec = load_checkpoint(tmp_path / "random").model.spec
    assert (spec.num_layers, spec.hidden_size, spec.ffn_size) == (6, 48, 192)
    export_bundle(tmp_path / "random", tmp_path / "bundle")
    pipeline = load(tmp_path / "bundle", threads=1)
    (row,) = pipeline.tokenizer.rows_of_length([make_texts(1)[0]["text"]], 60, 1)
    (answer,) = pipeline.run([row])
    assert [len(kept) for kept in answer.kept] == [30, 6]


@pytest.mark.parametrize("kept", ([0.5], [0.2, 0.5], [0.5, 0.0], [1.5, 0.5]))
def test_shares_that_no_chain_keeps_are_refused(tiny_checkpoint: Path, kept: list[float]) -> None:
    like = load_checkpoint(tiny_checkpoint)
    with pytest.raises(ConfigError, match="expected 2 falling shares"):
        random_model.make_checkpoint(like, kept, layers=6, width=48, heads=4)
