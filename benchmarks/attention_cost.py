"""Times the attention of one layer: over the row, within windows, where few ask, in 8 bits.

    python benchmarks/attention_cost.py --lengths 512,2048 --windows 64,128,256 --asking 0.5
    python benchmarks/attention_cost.py --lengths 128,512,2048 --windows 128 --eight-bits

One graph with attention, its four products and its normalization, in the sizes of MiniLM with
random weights, on ONNX Runtime in float32 (with its own operator) and on OpenVINO in float32 and in
bfloat16, where the processor computes in it, one thread. All graphs run in turns.

Windows: a block sees itself, its two neighbours, and the first tokens, which see all, as the mask
of benchmarks/quality/windows.py says. There is no mask here: blocks lie beside each other as rows
of a batch, each with the keys that it sees. Where a share of the tokens asks, all have keys and
values, and only these have queries and new states (benchmarks/quality/early_cut.py --seen).

In 8 bits: both sides of both products, queries with keys and weights with values, are rounded, as
runtimes want it that multiply in 8 bits. Ranges are those of the row that is timed.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import sqrt
from pathlib import Path
from random import Random

import click
import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray
from torch import Tensor, fake_quantize_per_tensor_affine, nn

from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.commands.numbers import Wholes
from trbert_deploy.commands.options import json_option
from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.exporters.onnx.trace import OPSET
from trbert_deploy.files import write_json
from trbert_deploy.machine import describe_machine
from trbert_deploy.modeling.blocks.attention import Attention
from trbert_deploy.modeling.layouts.layout import ScoreBias, attend_within, heads_of
from trbert_deploy.modeling.layouts.padded import PaddedLayout

MINILM = EncoderSpec(
    family="bert",
    task="text-classification",
    num_layers=6,
    hidden_size=384,
    num_heads=12,
    ffn_size=1536,
    vocab_size=30522,
    max_positions=2048,
    token_types=2,
    layer_norm_eps=1e-12,
    activation="gelu",
    dropout=0.0,
    pad_token_id=0,
    labels=("negative", "positive"),
)

FULL = "full"
#: (query, key, value, heads, no mask) -> context, as ``attend_within``.
Attend = Callable[[Tensor, Tensor, Tensor, int, None], Tensor]
#: Hidden states [1, S, H] -> those behind attention.
Graph = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def attend_in_onnxruntime(query: Tensor, key: Tensor, value: Tensor, heads: int, _: None) -> Tensor:
    """Its own operator, in a graph alone: it does not compute here."""
    attended: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (query, key, value),
        {"num_heads": heads},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )
    return attended


class EightBitProducts:
    """Attention, as ``attend_within``, that rounds what it multiplies to 8 bits.

    A tensor has one range. Queries, keys and values have as much of it on either side of nothing;
    weights are never below it.

    Args:
        query, key, value: largest absolute values, queries divided as attention divides them.
        weights: the largest value.
    """

    def __init__(self, query: float, key: float, value: float, weights: float) -> None:
        self.query, self.key, self.value, self.weights = query, key, value, weights

    @classmethod
    def of(cls, attention: Attention, hidden: Tensor) -> EightBitProducts:
        """With the ranges that there are over these states, [1, S, H]."""
        query, key, value = (
            heads_of(product(hidden), attention.num_heads)
            for product in (attention.query, attention.key, attention.value)
        )
        query = query / sqrt(query.shape[-1])
        weights = (query @ key.transpose(-1, -2)).softmax(-1)
        return cls(*(float(each.abs().max()) for each in (query, key, value, weights)))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, heads: int, _: None) -> Tensor:
        query, key, value = (heads_of(states, heads) for states in (query, key, value))
        query = _of_either_sign(query / sqrt(query.shape[-1]), self.query)
        scores = query @ _of_either_sign(key, self.key).transpose(-1, -2)
        weights = fake_quantize_per_tensor_affine(scores.softmax(-1), self.weights / 255, 0, 0, 255)
        return (weights @ _of_either_sign(value, self.value)).transpose(1, 2).flatten(2)


def _of_either_sign(states: Tensor, largest: float) -> Tensor:
    """Rounded to 8 bits without a sign, the kind that all processors multiply fast."""
    return fake_quantize_per_tensor_affine(states, largest / 127, 128, 0, 255)


class WindowedLayout(PaddedLayout):
    """Rows of one length [B, S, H], whose tokens attend within windows.

    Args:
        width: tokens of a block, of which a row has more than three; None for full attention.
        first: tokens that see all and are seen by all, fewer than a block.
        attend_within: what computes attention.
    """

    def __init__(self, width: int | None, first: int, attend_within: Attend) -> None:
        super().__init__(None)
        self.width, self.first_tokens = width, first
        self._within = attend_within

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_heads: int,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        """Attention in three calls without a mask: of the first two blocks, which see the same
        three; of all others, which do not see the first tokens beside them; of the first tokens.
        """
        if self.width is None:
            return self._within(query, key, value, num_heads, None)
        width, first = self.width, self.first_tokens
        batch, length, _ = query.shape
        beside = length // width - 2
        begun = self._within(
            query[:, : 2 * width], key[:, : 3 * width], value[:, : 3 * width], num_heads, None
        )

        def around(states: Tensor) -> Tensor:
            """What each block from the third on sees: [B, S, H] -> [B * (N - 2), 3 W + F, H]."""
            blocks = states.unflatten(1, (-1, width))[:, 1:]
            # The last block has no neighbour behind it, and sees what the one before it does.
            last = blocks[:, -3:]
            parts = [
                torch.cat([blocks[:, place : place + beside - 1], last[:, place : place + 1]], 1)
                for place in range(3)
            ]
            leads = states[:, None, :first].expand(-1, beside, -1, -1)
            return torch.cat([leads, *parts], 2).flatten(0, 1)

        others = query[:, 2 * width :].unflatten(1, (-1, width)).flatten(0, 1)
        others = self._within(others, around(key), around(value), num_heads, None)
        context = torch.cat([begun, others.reshape(batch, beside * width, -1)], 1)
        if not first:
            return context
        leads = self._within(query[:, :first], key, value, num_heads, None)
        return torch.cat([leads, context[:, first:]], 1)


class OneAttention(nn.Module):
    """The attention of a layer over rows of one length, within windows where they are given."""

    def __init__(
        self,
        attention: Attention,
        width: int | None,
        first: int,
        attend: Attend = attend_within,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.layout = WindowedLayout(width, first, attend)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [B, S, H] -> hidden [B, S, H]."""
        return self.attention(hidden, self.layout)


class AskingAttention(nn.Module):
    """The attention of a layer for the first tokens of rows, which see all."""

    def __init__(self, attention: Attention, count: int, attend: Attend = attend_within) -> None:
        super().__init__()
        self.attention = attention
        self.count = count
        self._within = attend

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [B, S, H] -> hidden [B, K, H]."""
        asking, of = hidden[:, : self.count], self.attention
        context = self._within(
            of.query(asking), of.key(hidden), of.value(hidden), of.num_heads, None
        )
        attended: Tensor = of.norm(asking + of.output(context))
        return attended


def traced(module: nn.Module, length: int) -> onnx.ModelProto:
    """A graph for one row of this length."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (torch.zeros(1, length, MINILM.hidden_size),),
            input_names=["hidden"],
            output_names=["attended"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # dynamo=True always returns a program
    return program.model_proto


def in_onnxruntime(graph: onnx.ModelProto) -> Graph:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # as in our backend
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion"],
    )
    return lambda hidden: session.run(None, {"hidden": hidden})[0]


def in_openvino(graph: onnx.ModelProto, precision: str) -> Graph:
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    model = core.read_model(graph.SerializeToString())
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        request.set_input_tensor(openvino.Tensor(hidden, shared_memory=True))
        request.infer(share_outputs=True)
        return request.get_output_tensor().data.copy()

    return run


@dataclass(frozen=True)
class Runtime:
    """What runs graphs.

    Attributes:
        attend: how it likes attention to be written.
        opened: a graph -> what runs it.
    """

    attend: Attend
    opened: Callable[[onnx.ModelProto], Graph]


def runtimes() -> dict[str, Runtime]:
    """Those that there are here."""
    found = {
        "ONNX Runtime fp32": Runtime(attend_in_onnxruntime, in_onnxruntime),
        "OpenVINO fp32": Runtime(attend_within, partial(in_openvino, precision="f32")),
    }
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        found["OpenVINO bf16"] = Runtime(attend_within, partial(in_openvino, precision="bf16"))
    return found


@dataclass(frozen=True)
class Timing:
    """A graph on rows of one length.

    Attributes:
        form: of attention.
        milliseconds: median.
        change: largest difference to what PyTorch computes of the same form.
    """

    runtime: str
    length: int
    form: str
    milliseconds: float
    change: float


#: What computes attention -> the module.
Form = Callable[[Attend], nn.Module]


def forms(
    hidden: Tensor,
    windows: Sequence[int],
    first: int,
    asking: Sequence[float],
    eight_bits: bool,
) -> dict[str, Form]:
    """Full attention, the windows that a row has more than three of, those where few ask, and that
    of 8 bits, all with the same random weights, for the states of one row [1, S, H].

    Raises:
        ConfigError: a row is not made of whole blocks, or the first tokens fill one.
    """
    attention, length = Attention(MINILM).eval(), hidden.shape[1]
    found: dict[str, Form] = {FULL: partial(OneAttention, attention, None, first)}
    for width in windows:
        if length % width or first >= width:
            raise ConfigError(
                f"windows of {width} on {length} tokens, of which {first} see all: expected whole "
                "blocks, longer than these"
            )
        if length > 3 * width:
            found[f"blocks of {width}"] = partial(OneAttention, attention, width, first)
    for share in asking:
        found[f"{share:.0%} ask"] = partial(AskingAttention, attention, round(share * length))
    if eight_bits:
        rounded = OneAttention(attention, None, first, EightBitProducts.of(attention, hidden))
        found["8 bits"] = lambda _: rounded
    return found


@torch.no_grad()
def measure(
    length: int,
    windows: Sequence[int],
    first: int,
    asking: Sequence[float],
    eight_bits: bool,
    rounds: int,
) -> list[Timing]:
    """Time all forms of attention, in turns.

    Raises:
        ConfigError: as ``forms`` says.
    """
    torch.manual_seed(0)
    hidden = torch.randn(1, length, MINILM.hidden_size)
    given = hidden.numpy()
    graphs: dict[tuple[str, str], Graph] = {}
    changes = {}
    for form, make in forms(hidden, windows, first, asking, eight_bits).items():
        expected = make(attend_within).eval()(hidden).numpy()
        for name, runtime in runtimes().items():
            graph = graphs[name, form] = runtime.opened(traced(make(runtime.attend), length))
            changes[name, form] = float(np.abs(graph(given) - expected).max())
    seconds: dict[tuple[str, str], list[float]] = {each: [] for each in graphs}
    order, random = list(graphs), Random(0)
    for _ in range(rounds):
        random.shuffle(order)
        for each in order:
            begun = time.process_time()  # one thread: other work on the machine does not count
            graphs[each](given)
            seconds[each].append(time.process_time() - begun)
    return [
        Timing(name, length, form, 1000.0 * float(np.median(spent)), changes[name, form])
        for (name, form), spent in sorted(seconds.items(), key=lambda each: each[0][0])
    ]


@click.command(help=__doc__)
@click.option("--lengths", type=Wholes(MOST_TOKENS), default="512,2048", show_default=True)
@click.option("--windows", type=Wholes(MOST_TOKENS), default="64,128,256", show_default=True)
@click.option("--first", default=4, show_default=True, help="First tokens that see all.")
@click.option(
    "--asking", multiple=True, type=click.FloatRange(0, 1, min_open=True), help="A share; several."
)
@click.option("--eight-bits", is_flag=True, help="Products of 8 bits, too.")
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True)
@json_option
def main(
    lengths: tuple[int, ...],
    windows: tuple[int, ...],
    first: int,
    asking: tuple[float, ...],
    eight_bits: bool,
    rounds: int,
    json_path: Path | None,
) -> None:
    torch.set_num_threads(1)
    try:
        timings = [
            each
            for length in lengths
            for each in measure(length, windows, first, asking, eight_bits, rounds)
        ]
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    print("| runtime | tokens | attention | median ms | of full | largest change |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    full = {(each.runtime, each.length): each.milliseconds for each in timings if each.form == FULL}
    for each in timings:
        share = each.milliseconds / full[each.runtime, each.length]
        print(
            f"| {each.runtime} | {each.length} | {each.form} | {each.milliseconds:.1f} "
            f"| {share:.0%} | {each.change:.4f} |"
        )
    if json_path is not None:
        figures = [asdict(each) for each in timings]
        write_json(json_path, {"machine": describe_machine(), "timings": figures})


if __name__ == "__main__":
    main()
