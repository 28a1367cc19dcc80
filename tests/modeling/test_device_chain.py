"""The chain on a device: the answers and survivors of the numpy chain, for every cut and rule."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from modeling.families.test_survivors import CONFIGS, make_case
from torch.overrides import TorchFunctionMode

from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling import recorded_chain
from trbert_deploy.modeling.device_chain import DeviceChain, PackedRows
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.recorded_chain import RecordedChain
from trbert_deploy.modeling.torch_backend import TorchBackend
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.token_state import RowResult, TokenRow, survivor_agreement
from trbert_deploy.selection.rules import SelectionRule

CUTS = ("1,2", "0.5", "0", "none", "0,0.5,2", "3.5")
RULES = (
    SelectionRule("threshold", 0.5),
    SelectionRule("threshold", 0.5, round_to=4),
    SelectionRule("ratio", 0.4),
    SelectionRule("budget", 5),
)
LENGTHS = (17, 3, 64, 1, 40, 17, 2, 16)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rows_of(*lengths: int, seed: int = 0) -> list[TokenRow]:
    rng = np.random.default_rng(seed)
    return [
        TokenRow(rng.integers(5, 256, length), rng.integers(0, 2, length)) for length in lengths
    ]


@cache
def model_of(cuts: str) -> ReducedModel:
    return tiny_model(cuts)


def numpy_chain(model: ReducedModel) -> Chain:
    return Chain(TorchBackend(model), model.reduction, model.spec.num_layers)


KINDS = pytest.mark.parametrize(
    "kind", [DeviceChain, RecordedChain], ids=lambda kind: kind.__name__
)


def assert_same(expected: list[RowResult], received: list[RowResult], atol: float = 1e-5) -> None:
    for ours, theirs in zip(expected, received, strict=True):
        assert [list(kept) for kept in theirs.kept] == [list(kept) for kept in ours.kept]
        np.testing.assert_allclose(theirs.outputs["logits"], ours.outputs["logits"], atol=atol)
        assert theirs.outputs["logits"].dtype == np.float32


@KINDS
@pytest.mark.parametrize("cuts", CUTS)
def test_as_the_numpy_chain(cuts: str, device: str, kind: type[DeviceChain]) -> None:
    model, rows = model_of(cuts), rows_of(*LENGTHS)
    chain = kind(model, device)
    for _ in range(3):  # the second time is a recording's first
        assert_same(numpy_chain(model).run(rows), chain.run(rows))
        assert_same(numpy_chain(model).run_dense(rows), chain.run_dense(rows))


@KINDS
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # transformers' DeBERTa
@pytest.mark.parametrize("family", CONFIGS)
def test_every_family(family: str, device: str, kind: type[DeviceChain]) -> None:
    model = make_case(family, (1, 4)).model
    with torch.no_grad():
        for policy in model.policies:
            policy.score.weight.mul_(50.0)  # decides clearly
    rng = np.random.default_rng(0)
    types = max(model.spec.token_types, 1)
    rows = [
        TokenRow(rng.integers(10, 90, length), rng.integers(0, types, length))
        for length in (150, 3, 1, 77, 77)
    ]
    chain, expected = kind(model, device), numpy_chain(model).run(rows)
    for _ in range(2):
        assert_same(expected, chain.run(rows), atol=1e-5 if device == "cpu" else 1e-4)
    assert 0 < sum(len(row.kept[1]) for row in expected) < sum(map(len, rows))


@pytest.mark.parametrize("lengths", [(64,), (32, 32, 32), (1,), (1, 1)])
def test_rows_of_one_length_are_recorded_as_they_are(lengths: tuple[int, ...], device: str) -> None:
    model, chain = model_of("0.5,2"), RecordedChain(model_of("0.5,2"), device)
    for seed in range(3):
        rows = rows_of(*lengths, seed=seed)
        assert_same(numpy_chain(model).run(rows), chain.run(rows))
        assert_same(numpy_chain(model).run_dense(rows), chain.run_dense(rows))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rows_of_one_length_by_any_rule(rule: SelectionRule, device: str) -> None:
    model = model_of("1,2")
    reduction = model.reduction.with_rules((rule, rule))
    chain = RecordedChain(model, device).at(reduction)
    expected = Chain(TorchBackend(model), reduction, model.spec.num_layers)
    for seed in range(3):
        rows = rows_of(32, 32, 32, seed=seed)
        assert_same(expected.run(rows), chain.run(rows))


def test_other_rows_take_the_same_recording(device: str) -> None:
    model, chain = model_of("1,2"), RecordedChain(model_of("1,2"), device)
    for seed, lengths in enumerate([(60, 40, 17), (50, 61, 1), (20, 64, 30)]):
        rows = rows_of(*lengths, seed=seed)
        assert_same(numpy_chain(model).run(rows), chain.run(rows))
    assert len(chain._recordings) == 1


def test_recordings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecordedChain, "MOST", 2)
    model, chain = model_of("1,2"), RecordedChain(model_of("1,2"))
    for length in (5, 6, 7, 7, 6, 5):
        rows = rows_of(length)
        assert_same(numpy_chain(model).run(rows), chain.run(rows))
        assert len(chain._recordings) <= 2


def test_more_survivors_than_there_is_room_for(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_chain, "_up", lambda number, step: number)
    monkeypatch.setattr(RecordedChain, "SPARE", 0.0)
    model, chain = model_of("1,2"), RecordedChain(model_of("1,2"), device)
    cases = []
    for seed in range(8):  # equally many tokens, of which more or fewer survive
        rows = rows_of(50, 50, seed=seed)
        cases.append((rows, numpy_chain(model).run(rows)))
    left = [sum(len(row.kept[0]) for row in expected) for _, expected in cases]
    for place in np.argsort(left):
        rows, expected = cases[place]
        assert_same(expected, chain.run(rows))
    assert max(left) > min(left)


@KINDS
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule(rule: SelectionRule, device: str, kind: type[DeviceChain]) -> None:
    model = tiny_model("1,2")
    model.set_reduction(ReductionConfig.parse("1,2").with_rules((rule, rule)))
    rows, chain = rows_of(*LENGTHS), kind(model, device)
    for _ in range(2):
        assert_same(numpy_chain(model).run(rows), chain.run(rows))


@given(st.lists(st.integers(1, 64), min_size=1, max_size=8), st.integers(0, 2**31))
def test_rows_of_any_lengths(lengths: list[int], seed: int) -> None:
    model, rows = model_of("0.5,2"), rows_of(*lengths, seed=seed)
    for chain in (DeviceChain(model), RecordedChain(model)):
        for _ in range(2):
            assert_same(numpy_chain(model).run(rows), chain.run(rows))


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 10**6])
def test_the_size_of_batches_does_not_matter(max_batch_tokens: int, device: str) -> None:
    model, rows = model_of("1,2"), rows_of(*LENGTHS)
    chain = DeviceChain(model, device, max_batch_tokens=max_batch_tokens)
    assert_same(numpy_chain(model).run(rows), chain.run(rows))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_close_and_keeps_float32_where_it_must(
    precision: str, device: str
) -> None:
    model, rows = model_of("1,2"), rows_of(*LENGTHS)
    chain = DeviceChain(model, device, precision)
    seen = {}

    def note(name: str) -> None:
        module = chain.model.get_submodule(name)
        module.register_forward_hook(lambda _module, _given, made: seen.update({name: made.dtype}))

    norm, product = "encoder.layers.0.attention.norm", "encoder.layers.0.attention.merged"
    for name in (norm, product, "encoder.layers.3.feed_forward", "policies.0", "head.pooler"):
        note(name)
    expected, received = numpy_chain(model).run(rows), chain.run(rows)
    assert survivor_agreement(rows, expected, received) > 0.95
    dense = zip(numpy_chain(model).run_dense(rows), chain.run_dense(rows), strict=True)
    for ours, theirs in dense:
        np.testing.assert_allclose(theirs.outputs["logits"], ours.outputs["logits"], atol=0.1)
    assert seen.pop(product) in (torch.float16, torch.bfloat16)
    assert set(seen.values()) == {torch.float32}
    assert next(model.encoder.layers.parameters()).dtype is torch.float32  # the given one


def test_unknown_precision() -> None:
    with pytest.raises(ConfigError, match="precision 'int8': expected fp32, fp16, bf16"):
        DeviceChain(model_of("1,2"), precision="int8")


class HostReads(TorchFunctionMode):
    """Notes what goes from tensors to the host: which function, and how many values."""

    #: Functions that a device's tensor answers only when the host waits for it.
    WAITING = frozenset(
        {"cpu", "item", "tolist", "nonzero", "argwhere", "unique", "masked_select", "equal",
         "__bool__", "__int__", "__float__", "__index__", "__contains__"}
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[str, int]] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        by_mask = name == "__getitem__" and any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool
            for each in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        if name in self.WAITING or by_mask:
            self.reads.append((name, args[0].numel()))
        return function(*args, **(kwargs or {}))


def test_at_a_cut_the_host_reads_the_survivors_counts_and_nothing_else() -> None:
    chain = DeviceChain(model_of("0.5,2"))
    batch = PackedRows.of(sorted(rows_of(*LENGTHS), key=len), "cpu")
    with HostReads() as host:
        chain.reduced(batch)
    assert host.reads == [("cpu", len(LENGTHS))] * 2
    with HostReads() as host:
        chain.dense(batch)
    assert host.reads == []


def test_what_the_host_reads_is_seen() -> None:
    values = torch.arange(3)
    with HostReads() as host:
        values.cpu()
        assert values[0] == 0
        values.tolist()
        values[values > 1]
        int(values[2])
    assert [name for name, _ in host.reads] == [
        "cpu", "__bool__", "tolist", "__getitem__", "__int__"
    ]  # fmt: skip


@pytest.mark.gpu
def test_the_host_waits_once_at_each_cut() -> None:
    model = model_of("0.5,2")
    chain = DeviceChain(model, "cuda", "fp16")
    batch = PackedRows.of(sorted(rows_of(*LENGTHS), key=len), "cuda")
    chain.reduced(batch)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _, layouts = chain.reduced(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in caught if "called a synchronizing CUDA" in str(one.message)]
    assert len(waits) == len(layouts) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("lengths", [(3, 40, 64, 64), (64, 64), (1,), (40, 3, 17)])
def test_attention_on_the_gpu(lengths: tuple[int, ...], dtype: str) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, sum(lengths), 32, generator=generator).to(getattr(torch, dtype))
    expected, received = (
        PackedLayout(np.array(lengths), place).attend(
            *(part.to(place, kind).requires_grad_() for part in states), 4
        )
        for place, kind in (("cpu", torch.float32), ("cuda", states.dtype))
    )
    tolerance = {"float32": 1e-5, "float16": 3e-3, "bfloat16": 3e-2}[dtype]
    torch.testing.assert_close(received.float().cpu(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_learns_on_the_gpu(dtype: str) -> None:
    lengths, kind = np.array([3, 40, 64]), getattr(torch, dtype)
    states = torch.randn(3, 107, 32, generator=torch.Generator().manual_seed(0)).to(kind)
    gradients = []
    for place, wanted in (("cpu", torch.float32), ("cuda", kind)):
        given = states.to(place, wanted).requires_grad_()
        context = PackedLayout(lengths, place).attend(*given, 4)
        gradients.append(torch.autograd.grad(context.float().square().sum(), given)[0].cpu())
    tolerance = 1e-4 if dtype == "float32" else 5e-2
    torch.testing.assert_close(gradients[1].float(), gradients[0], atol=tolerance, rtol=tolerance)
