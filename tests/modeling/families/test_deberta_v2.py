"""DeBERTa, versions 2 and 3, against transformers, and through the whole export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import LABELS, make_texts
from modeling.families import checks
from modeling.families.harness import assert_same, random_ids, random_pair
from transformers import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from trbert_deploy import load
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import CheckpointError
from trbert_deploy.evaluation.models import open_models
from trbert_deploy.exporters.checks.half_precision import compare_precision
from trbert_deploy.exporters.checks.limits import LIMITS, NO_LIMITS
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.exporters.tensorrt.engine_build import EngineOptions, build_engines
from trbert_deploy.flops import dense_flops
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.modeling.families.deberta_v2 import RelativePositions, bucket_of
from trbert_deploy.modeling.families.registry import FAMILIES
from trbert_deploy.modeling.layouts.gated import GatedLayout
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.layouts.padded import PaddedLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.runtime.token_state import fates_apart, survivor_agreement

SMALL: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 70,
}  # fmt: skip
#: As DeBERTa-v3 is, with so few buckets that rows reach all of them.
V3: dict[str, Any] = {
    **SMALL, "relative_attention": True, "pos_att_type": "p2c|c2p", "share_att_key": True,
    "position_buckets": 16, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
}  # fmt: skip
ODD_SHAPES = [[1], [2], [7, 7], [70], [70, 1, 43], [5, 3, 5, 2]]
#: Entries that transformers reads from config.json and its class does not declare.
UNDECLARED = ("embedding_size", "share_att_key", "norm_rel_ebd", "position_buckets")

VARIANTS: dict[str, dict[str, Any]] = {
    "v2": {"max_relative_positions": -1, "type_vocab_size": 2, "position_biased_input": True},
    "no buckets": {"position_buckets": -1},
    "no buckets, near": {"position_buckets": -1, "max_relative_positions": 9},
    "far": {"max_relative_positions": 200},
    "near": {"max_relative_positions": 20},
    "two buckets": {"position_buckets": 2},
    "narrow": {"embedding_size": 12, "type_vocab_size": 1},
    "no norm": {"norm_rel_ebd": "none", "position_biased_input": True},
    "no kind": {"pos_att_type": None},
    "plain": {"relative_attention": False, "position_biased_input": True, "pos_att_type": None},
    "plain, scaled": {"relative_attention": False, "position_biased_input": True},
}


@pytest.mark.parametrize("lengths", ODD_SHAPES, ids=str)
def test_deberta_v3_is_transformers(lengths: list[int]) -> None:
    assert_same(*random_pair(DebertaV2Config(**V3)), lengths)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_is_transformers(changes: dict[str, Any]) -> None:
    if not changes.get("relative_attention", True):
        changes = {**changes, "norm_rel_ebd": "none"}
    config = DebertaV2Config(**{**V3, **changes})
    pair = random_pair(config)
    for lengths in ODD_SHAPES:
        assert_same(*pair, lengths)
    checks.assert_config_comes_back(config, UNDECLARED)
    checks.assert_weights_come_back(config)
    checks.assert_bare_encoder_loads(config)


@pytest.mark.parametrize("kinds", [["c2p"], ["p2c"], ["p2c", "c2p"]], ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_every_kind_of_score_is_transformers(kinds: list[str], shared: bool) -> None:
    config = DebertaV2Config(**{**V3, "pos_att_type": kinds, "share_att_key": shared})
    pair = random_pair(config)
    for lengths in ([70, 1, 43], [7, 7]):
        assert_same(*pair, lengths)
    checks.assert_config_comes_back(config, UNDECLARED)
    checks.assert_weights_come_back(config)
    checks.assert_bare_encoder_loads(config)


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "tanh"])
def test_activations_of_layers_and_pooler(activation: str) -> None:
    config = DebertaV2Config(**V3, hidden_act=activation, pooler_hidden_act=activation)
    assert_same(*random_pair(config), [9, 4])
    checks.assert_config_comes_back(config, UNDECLARED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "mish"}, "hidden_act is 'mish': expected one of gelu"),
        ({"pooler_hidden_act": "mish"}, "pooler_hidden_act is 'mish': expected one of gelu"),
        ({"is_decoder": True}, "this deberta-v2 is a decoder"),
        ({"conv_kernel_size": 3}, "conv_kernel_size is 3: expected 0"),
        ({"talking_head": True}, "talking_head is True: expected False"),
        ({"attention_head_size": 16}, "attention_head_size is 16: expected 8"),
        ({"pooler_hidden_size": 16}, "pooler_hidden_size is 16: expected 32"),
        ({"pos_att_type": "c2p|p2p"}, r"pos_att_type is \['c2p', 'p2p'\]: expected c2p, p2c, both"),
        ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd is 'batch_norm': expected 'none' or"),
        ({"position_buckets": 15}, "position_buckets is 15 with max_relative_positions 70"),
        ({"position_buckets": 138}, "expected an even number below 138, or -1 for none"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checks.spec_of(DebertaV2Config(**{**V3, **changes}))


def test_a_tensor_that_is_not_computed_is_refused_by_name() -> None:
    theirs, ours = random_pair(DebertaV2Config(**V3))
    state = {**theirs.state_dict(), "deberta.encoder.conv.conv.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"encoder\.conv\.conv\.weight, which deberta-v2"):
        ours.family.load(state, ours.spec)


def test_what_transformers_leaves_alone_is_left_alone() -> None:
    theirs, ours = random_pair(DebertaV2Config(**{**V3, "norm_rel_ebd": "none"}))
    unread = {
        "deberta.embeddings.position_embeddings.weight": torch.zeros(70, 32),
        "deberta.encoder.LayerNorm.weight": torch.ones(32),
    }
    loaded = ours.family.load({**theirs.state_dict(), **unread}, ours.spec)
    assert set(loaded) == set(ours.state_dict())


@pytest.mark.parametrize(
    ("buckets", "farthest"), [(256, 512), (16, 70), (32, 20), (2, 9), (64, 3000), (4, 512)]
)
def test_buckets_are_those_of_transformers(buckets: int, farthest: int) -> None:
    distance = torch.arange(-4000, 4001)
    expected = make_log_bucket_position(distance, buckets, farthest).long()
    assert torch.equal(bucket_of(distance, buckets, farthest), expected)
    config = DebertaV2Config(
        **{**V3, "position_buckets": buckets, "max_relative_positions": farthest}
    )
    relative = RelativePositions(checks.spec_of(config))
    rows = relative.rows(torch.tensor([[4000, *range(0, 8001, 13), *range(3900, 4100)]]))[0, 1:, 0]
    wanted = (expected + buckets).clamp(0, 2 * buckets - 1)
    assert torch.equal(rows, torch.cat([wanted[::13], wanted[3900:4100]]))


def test_longer_rows_keep_the_relative_positions() -> None:
    _, ours = random_pair(DebertaV2Config(**V3))
    ours.extend_positions(140)
    entries = {**DebertaV2Config(**V3).to_dict(), **ours.family.hf_config(ours.spec)}
    assert (entries["max_position_embeddings"], entries["max_relative_positions"]) == (140, 70)
    assert checks.spec_of(DebertaV2Config(**entries)) == ours.spec


def test_relative_positions_cost_operations() -> None:
    specs = {
        kinds: checks.spec_of(DebertaV2Config(**{**V3, "pos_att_type": kinds}))
        for kinds in ("c2p|p2c", "c2p")
    }
    assert [spec.relative_keys for spec in specs.values()] == [64, 32]
    plain = checks.spec_of(DebertaV2Config(**{**V3, "relative_attention": False}))
    assert plain.relative_keys == 0
    both, one, none = (dense_flops(spec, 10) for spec in (*specs.values(), plain))
    assert both - one == one - none == 3 * 2 * 10 * 32 * 32


def test_rows_of_the_table_are_looked_up_once_for_all_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, ...]] = []
    rows = RelativePositions.rows

    def counting(self: RelativePositions, positions: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(positions.shape))
        return rows(self, positions)

    monkeypatch.setattr(RelativePositions, "rows", counting)
    _, ours = random_pair(DebertaV2Config(**V3))
    ids, types, mask = random_ids(ours.spec, [4, 9, 4])
    padded, packed = PaddedLayout(mask), PackedLayout(mask.sum(1).numpy())
    ours.encoder.run_steps(ours.embed(ids, types, padded), padded, 0, ours.spec.num_steps)
    assert asked == [(1, 9)]
    asked.clear()
    hidden = ours.embed(ids[mask], types[mask], packed)
    ours.encoder.run_steps(hidden, packed, 0, ours.spec.num_steps)
    assert sorted(asked) == [(1, 4), (1, 9)]


@pytest.mark.parametrize("variant", ["v2", "no buckets"])
def test_gradients_flow_through_gates(variant: str) -> None:
    _, ours = random_pair(DebertaV2Config(**{**V3, **VARIANTS[variant], "share_att_key": False}))
    ours.train()
    ids, types, mask = random_ids(ours.spec, [12, 1, 33])
    gate = torch.rand(int(mask.sum())).requires_grad_()
    layout = GatedLayout(PackedLayout(mask.sum(1).numpy()), gate)
    hidden = ours.embed(ids[mask], types[mask], layout)
    hidden = ours.encoder.run_steps(hidden, layout, 0, ours.spec.num_steps)
    ours.head(hidden, layout)["logits"].square().sum().backward()
    learned = dict(ours.named_parameters()) | {"gate": gate}
    for name, parameter in learned.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and (parameter.grad != 0).any(), name


TEXTS = [row["text"] for row in make_texts(20, seed=5)]
CUTS = "0.5,1"
GRAPHS = ("segment_0", "segment_1", "segment_2", "dense")


def save_checkpoint_of(
    config: DebertaV2Config, tokenizer_dir: Path, path: Path, cuts: str = CUTS
) -> None:
    torch.manual_seed(0)
    spec = FAMILIES["deberta-v2"].spec(config, checks.TASK, LABELS)
    model = ReducedModel(spec, ReductionConfig.parse(cuts)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    samples = tuple(row["text"] for row in make_texts(6))
    save_checkpoint(Checkpoint(model, tokenizer_dir, 64, samples=samples), path)


def assert_served_alike(bundle: Path, checkpoint: Path) -> None:
    """The bundle keeps the same tokens and gives the same scores as the checkpoint."""
    expected = open_models(checkpoint)[0](TEXTS, return_kept=True)
    assert any(len(one.kept[1].positions) < one.num_tokens for one in expected)
    for backend in ("onnxruntime", "openvino", "torch"):
        served = load(bundle, backend, threads=1, precision="fp32")
        for one, other in zip(served(TEXTS, return_kept=True), expected, strict=True):
            assert one.kept == other.kept
            assert np.allclose(list(one.scores.values()), list(other.scores.values()), atol=1e-5)


@pytest.fixture(scope="module")
def exported(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint and its bundle, with 8 bits and half precision, too."""
    path = tmp_path_factory.mktemp("deberta")
    config = DebertaV2Config(
        **{**V3, "vocab_size": 220, "max_position_embeddings": 64, "num_hidden_layers": 2}
    )
    save_checkpoint_of(config, tokenizer_dir, path / "checkpoint")
    report = export_bundle(
        path / "checkpoint", path / "bundle", int8=True, int8_limits=NO_LIMITS, fp16=True
    )
    assert report.int8_agreement is not None and report.int8_agreement > 0.5
    return path


def test_it_is_exported_and_served(exported: Path) -> None:
    assert_served_alike(exported / "bundle", exported / "checkpoint")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(exported: Path, precision: str) -> None:
    bundle = Bundle.open(exported / "bundle")
    models = {name: onnx.load(bundle.path / f"{name}.onnx") for name in GRAPHS}
    parity = compare_precision(bundle, models, precision)
    assert parity.chain.survivor_agreement > 0.95


def test_half_precision_is_served(exported: Path) -> None:
    whole, half = (
        load(exported / "bundle", threads=1, precision=each) for each in ("fp32", "fp16")
    )
    rows = whole.tokenize(TEXTS)
    expected, answered = (pipeline.run(rows) for pipeline in (whole, half))
    assert survivor_agreement(rows, expected, answered) >= LIMITS["fp16"].survivor_agreement
    for one, other in zip(expected, answered, strict=True):
        if not fates_apart(one, other):
            logits, found = one.outputs["logits"], other.outputs["logits"]
            assert np.allclose(logits, found, atol=LIMITS["fp16"].tolerance)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_engines(exported: Path, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = EngineOptions(
        precision, lengths=(32,), batches=(1, 2, 4), compute_capability="8.6", flavour="rtx"
    )
    report = build_engines(exported / "bundle", options)
    assert [engine.name for engine in report.engine_set.manifest.engines] == list(GRAPHS)


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_hold_rows_once_and_projections_as_constants(exported: Path, name: str) -> None:
    graph = onnx.load(exported / "bundle" / f"{name}.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    attentions = kinds.count("Attention")
    assert kinds.count("Clip") == min(1, attentions)  # distances, brought within reach
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if constants.issuperset(name for name in node.input if name):
            constants.update(node.output)
    made = constants - {tensor.name for tensor in graph.initializer}
    readers = [
        node.op_type
        for node in graph.node
        if made.intersection(node.input) and node.output[0] not in constants
    ]
    assert readers == 2 * attentions * ["MatMul"]


def test_plain_segments_that_ask_for_no_positions(tokenizer_dir: Path, tmp_path: Path) -> None:
    config = DebertaV2Config(
        **{**V3, "relative_attention": False, "vocab_size": 220, "num_hidden_layers": 1}
    )
    save_checkpoint_of(config, tokenizer_dir, tmp_path / "checkpoint", cuts="0,0.5")
    export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    assert_served_alike(tmp_path / "bundle", tmp_path / "checkpoint")
