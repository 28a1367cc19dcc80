"""ModernBERT against transformers, and through the whole export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import make_texts
from modeling.families import checks
from modeling.families.harness import assert_same, random_pair
from transformers import AutoModelForSequenceClassification, ModernBertConfig

from trbert_deploy import load
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import CheckpointError
from trbert_deploy.evaluation.models import open_models
from trbert_deploy.exporters.checks.half_precision import compare_precision
from trbert_deploy.exporters.checks.limits import NO_LIMITS
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.exporters.onnx.precision import position_nodes
from trbert_deploy.exporters.tensorrt.engine_build import EngineOptions, build_engines
from trbert_deploy.modeling.blocks.rotary import Rotary
from trbert_deploy.modeling.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trbert_deploy.modeling.layouts.gated import GatedLayout
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.layouts.padded import PaddedLayout
from trbert_deploy.modeling.model import ReducedModel

SPECIAL: dict[str, Any] = {
    f"{name}_token_id": index for index, name in enumerate(("pad", "bos", "eos", "cls", "sep"))
}
#: Rows of up to 60 tokens, which see 8 on each side in local layers.
SMALL: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 60, "local_attention": 16, **SPECIAL,
}  # fmt: skip
BIASES = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")
ODD_SHAPES = [[1], [2], [7, 7], [60], [60, 1, 33], [5, 3, 5, 2]]


@pytest.mark.parametrize("lengths", ODD_SHAPES, ids=str)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_is_transformers(lengths: list[int], pooling: str) -> None:
    assert_same(*random_pair(ModernBertConfig(**SMALL, classifier_pooling=pooling)), lengths)


@pytest.mark.parametrize("window", [0, 1, 2, 3, 7, 118, 119, 200])
def test_the_window_is_that_of_transformers(window: int) -> None:
    pair = random_pair(ModernBertConfig(**{**SMALL, "local_attention": window}))
    assert_same(*pair, [60, 13])


@pytest.mark.parametrize("activation", checks.HF_ACTIVATIONS)
def test_every_activation_that_transformers_names(activation: str) -> None:
    config = ModernBertConfig(
        **SMALL, hidden_activation=activation, classifier_activation=activation
    )
    assert_same(*random_pair(config), [9, 24])


@pytest.mark.parametrize("bias", BIASES)
def test_biases_are_where_the_configuration_says(bias: str) -> None:
    assert_same(*random_pair(ModernBertConfig(**SMALL, **{bias: True})), [9, 24])


def test_configurations_of_older_releases() -> None:
    old = {"global_attn_every_n_layers": 2, "global_rope_theta": 500.0, "local_rope_theta": 20.0}
    config = ModernBertConfig(**SMALL, **old)
    kinds = ["full_attention", "sliding_attention"]
    options = checks.spec_of(config).options
    assert options["layer_types"] == 2 * kinds
    assert options["rope_theta"] == dict(zip(kinds, (500.0, 20.0), strict=True))
    assert_same(*random_pair(config), [60, 13])
    entries = {**SMALL, **old, **config.to_dict()}
    assert checks.spec_of(ModernBertConfig(**entries)) == checks.spec_of(config)


def test_an_open_local_theta_is_the_global_one() -> None:
    config = ModernBertConfig(**SMALL, global_rope_theta=500.0, local_rope_theta=None)
    assert set(checks.spec_of(config).options["rope_theta"].values()) == {500.0}


@pytest.mark.parametrize("biases", [True, False])
def test_what_goes_in_comes_back(biases: bool) -> None:
    config = ModernBertConfig(
        **SMALL,
        **dict.fromkeys(BIASES, biases),
        hidden_activation="silu",
        classifier_activation="relu",
        classifier_pooling="mean",
        mlp_dropout=0.1,
        norm_eps=1e-6,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 700.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
        },
    )
    checks.assert_config_comes_back(config)
    checks.assert_weights_come_back(config)
    checks.assert_bare_encoder_loads(config)


SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_activation": "mish"}, "hidden_activation is 'mish': expected one of gelu"),
        ({"classifier_activation": "mish"}, "classifier_activation is 'mish': expected one of"),
        ({"hidden_size": 36, "num_attention_heads": 12}, "hidden_size is 36 with 12 heads"),
        ({"rope_parameters": {"full_attention": SCALED}}, "of full_attention is 'linear'"),
        ({"rope_parameters": {"sliding_attention": SCALED}}, "of sliding_attention is 'linear'"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checks.spec_of(ModernBertConfig(**{**SMALL, **changes}))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("classifier_pooling", "max", "classifier_pooling is 'max': expected 'cls' or 'mean'"),
        ("layer_types", ["chunked_attention"] * 4, "layer_types has 'chunked_attention'"),
        ("layer_types", ["full_attention"], "layer_types names 1 layers: expected 4"),
    ],
)
def test_what_transformers_refuses_too(name: str, value: Any, message: str) -> None:
    config = ModernBertConfig(**SMALL)
    config.__dict__[name] = value
    with pytest.raises(CheckpointError, match=message):
        checks.spec_of(config)


def test_an_unknown_tensor_is_refused() -> None:
    theirs, ours = random_pair(ModernBertConfig(**SMALL))
    state = theirs.state_dict() | {"model.layers.0.attn.Wqk.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"attn\.Wqk\.weight, which modernbert does"):
        ours.family.load(state, ours.spec)


def test_tables_and_masks_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    tables = Rotary.tables

    def counting(self: Rotary, positions: torch.Tensor) -> Any:
        asked.append(self)
        return tables(self, positions)

    monkeypatch.setattr(Rotary, "tables", counting)
    _, ours = random_pair(ModernBertConfig(**{**SMALL, "num_hidden_layers": 6}))
    hidden = torch.randn(2, 30, 32)
    mask = torch.arange(30) < torch.tensor([[30], [4]])
    padded, packed = PaddedLayout(mask), PackedLayout(mask.sum(1).numpy())
    for states, layout in ((hidden, padded), (hidden[mask], packed)):
        last = ours.encoder.run_steps(states, layout, 0, ours.spec.num_steps)
        assert len(set(asked)) == len(asked) == 2  # one for each kind of layer
        assert last.isfinite().all()
        asked.clear()
    attention: Any = ours.encoder.layers[1].attention
    bias = attention.score_bias(hidden, hidden, None)
    assert padded.scores_mask(hidden, bias) is padded.scores_mask(hidden, bias)


def test_gradients_where_nobody_in_sight_is_open() -> None:
    _, ours = random_pair(ModernBertConfig(**{**SMALL, "local_attention": 4}))
    gate = torch.zeros(60, requires_grad=True)
    opened = (torch.arange(60) < 3) + gate
    layout = GatedLayout(PackedLayout(torch.tensor([60]).numpy()), opened)
    hidden = torch.randn(60, 32, requires_grad=True)
    last = ours.encoder.run_steps(hidden, layout, 0, ours.spec.num_steps)
    ours.head(last, layout)["logits"].square().sum().backward()
    for gradient in (gate.grad, hidden.grad, *(p.grad for p in ours.encoder.layers.parameters())):
        assert gradient is not None and gradient.isfinite().all()
    assert gate.grad is not None and (gate.grad != 0).all()


@pytest.fixture(scope="module")
def checkpoint(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    changes = {"vocab_size": 220, "num_hidden_layers": 3, "global_attn_every_n_layers": 2}
    spec = checks.spec_of(ModernBertConfig(**{**SMALL, **changes}))
    model = ReducedModel(spec, ReductionConfig.parse("0.5,2")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
        for policy in model.policies:
            policy.get_parameter("score.weight").mul_(8.0)
    path = tmp_path_factory.mktemp("modernbert") / "ckpt"
    samples = tuple(row["text"] for row in make_texts(6))
    made = Checkpoint(model, tokenizer_dir, 60, samples=samples, hf_config=SPECIAL)
    save_checkpoint(made, path)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    report = export_bundle(
        checkpoint, checkpoint.parent / "bundle", int8=True, int8_limits=NO_LIMITS, fp16=True
    )
    return report.path


@pytest.fixture(scope="module")
def graphs(bundle: Path) -> dict[str, onnx.ModelProto]:
    opened = Bundle.open(bundle)
    return {
        graph.name: onnx.load(opened.graph_path(graph.name)) for graph in opened.manifest.graphs
    }


def test_transformers_loads_what_is_saved(checkpoint: Path) -> None:
    theirs = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, attn_implementation="eager"
    ).eval()
    assert_same(theirs, load_checkpoint(checkpoint).model, [60, 13])


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        ("onnxruntime", "fp32"), ("openvino", "fp32"), ("torch", "fp32"),
        ("onnxruntime", "int8"), ("openvino", "int8"), ("onnxruntime", "fp16"),
    ],
)  # fmt: skip
def test_every_backend_serves_it(
    checkpoint: Path, bundle: Path, backend: str, precision: str
) -> None:
    texts = [row["text"] for row in make_texts(20, seed=5)]
    expected = open_models(checkpoint)[0](texts, return_kept=True)
    lengths = [(one.num_tokens, *(len(cut.positions) for cut in one.kept)) for one in expected]
    assert any(whole > first > 20 and first > second for whole, first, second in lengths)
    served = load(bundle, backend, threads=1, precision=precision)(texts, return_kept=True)
    scores, wanted = ([list(one.scores.values()) for one in ones] for ones in (served, expected))
    assert np.allclose(scores, wanted, atol=1e-4 if precision == "fp32" else 0.1)
    if precision == "fp32":
        assert [one.kept for one in served] == [one.kept for one in expected]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_close(
    bundle: Path, graphs: dict[str, onnx.ModelProto], precision: str
) -> None:
    parity = compare_precision(Bundle.open(bundle), graphs, precision)
    assert parity.chain.survivor_agreement > 0.95


def test_graphs_compute_angles_once_in_float32(graphs: dict[str, onnx.ModelProto]) -> None:
    for name, model in graphs.items():
        nodes = [node.op_type for node in model.graph.node]
        local = name in ("segment_1", "dense")  # the middle one of three layers
        assert nodes.count("Cos") == nodes.count("Sin") == (2 if name == "dense" else 1), name
        assert nodes.count("LessOrEqual") == nodes.count("And") == local
        exact = position_nodes(model.graph)
        assert all(
            index in exact for index, kind in enumerate(nodes) if kind in ("Cos", "Sin", "Abs")
        )


def test_tensorrt_builds_it(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = EngineOptions(precision="fp16", lengths=(32,), batches=(1, 2, 4), flavour="rtx")
    assert len(build_engines(bundle, options).engine_set.manifest.engines) == 4
