"""The whole chain as one graph, for runtimes and languages that have none of this package.

It is put together from the graphs of the segments, with ``CompactTokens`` between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from trbert_deploy.bundle.manifest import (
    ATTENTION_MASK,
    CHAIN,
    HIDDEN,
    HIDDEN_OUT,
    INPUT_IDS,
    KEEP_LOGIT,
    MATCHES,
    POSITIONS,
    PROTECTED,
    dropped_name,
    segment_name,
    survivors_name,
)
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.exporters.onnx.assembly import Assembly
from trbert_deploy.exporters.onnx.joined_answers import JOINED, PassedCut
from trbert_deploy.plugins import DOMAIN, OPERATOR, PLUGIN_VERSION
from trbert_deploy.plugins.onnx_compaction import compact_tokens, wanted_tokens
from trbert_deploy.selection.capacity import MOST_SLOTS, PARTS, Capacity
from trbert_deploy.tasks.outputs import Output, asked_token, hear_dropped

_INT, _BOOL = TensorProto.INT64, TensorProto.BOOL


def whole_chain(
    graphs: Mapping[str, onnx.ModelProto],
    reduction: ReductionConfig,
    outputs: Sequence[Output],
    *,
    protects: bool = False,
    capacities: Sequence[Capacity] | None = None,
    plugin: bool = False,
) -> onnx.ModelProto:
    """One graph of all segments, and of what dropped tokens say.

    Inputs: what the first segment takes: [B, S] int64, and ``attention_mask`` [B, S] bool where it
    takes one, or else B is 1; and ``protected`` [B, S] bool where ``protects``, or else the first
    token is.
    Outputs: those of the task, as ``Output`` has them; and ``survivors_0`` [B, K] int64 and so on,
    the places of each cut's survivors in the row, in order, and -1 in slots left over.

    Args:
        graphs: by name, masked or not, with their weights inside or outside.
        outputs: of the task.
        protects: whether the task may protect more than the first token.
        capacities: slots of a row behind each cut, by the length of the batch; where None as many
            as the row with the most survivors has, which is exact, and which TensorRT cannot take.
        plugin: leave ``CompactTokens`` to a plugin of TensorRT (``plugins/tensorrt_plugin.py``),
            which finds the exact number of slots itself; K is S then, as of outputs whose sizes
            TensorRT must know before.

    Raises:
        ConfigError: no cuts, outputs that are of some tokens alone, or a lexicon is heard.
    """
    assembly = Assembly(graphs)
    last = segment_name(len(reduction.cuts))
    require_one_graph(reduction, outputs, last in graphs and MATCHES in assembly.inputs_of(last))
    first = segment_name(0)
    given = assembly.inputs_of(first)
    shape = assembly.node("Shape", [INPUT_IDS], start=0, end=2)
    length = assembly.node("Shape", [INPUT_IDS], start=1, end=2)
    positions = assembly.node("Expand", [_numbers_to(assembly, length), shape])
    present = ATTENTION_MASK
    if ATTENTION_MASK not in given:
        present = assembly.node("Expand", [assembly.constant(True, np.bool_), shape])
    protected = PROTECTED
    if protects:
        given.append(PROTECTED)
    else:
        protected = assembly.node("Equal", [positions, assembly.constant(0)])
    slots, hidden = length, ""
    cuts: list[PassedCut] = []
    for index in range(len(reduction.cuts)):
        tensors = {name: name for name in given} if index == 0 else {HIDDEN: hidden}
        tensors |= {ATTENTION_MASK: present, POSITIONS: positions}
        made = assembly.part(segment_name(index), tensors)
        of_tokens = [made[KEEP_LOGIT], present, protected]
        wanted = assembly.node(_wanted(index), of_tokens, domain=DOMAIN)
        of_cut = [made[HIDDEN_OUT], *of_tokens, wanted]
        if plugin:
            compacted, filled, places, _ = assembly.nodes(
                OPERATOR,
                of_cut,
                ("", "", "", ""),
                domain=DOMAIN,
                plugin_namespace=DOMAIN,
                plugin_version=PLUGIN_VERSION,
            )
        else:
            if capacities is None:
                slots = assembly.node("ReduceMax", [wanted, assembly.constant([0])], keepdims=0)
            else:
                slots = assembly.node("Min", [slots, _slots(assembly, capacities[index], length)])
            compacted, filled, places = assembly.nodes(
                OPERATOR, [*of_cut, slots], ("", "", ""), domain=DOMAIN
            )
        said = {}
        if hear_dropped(outputs):
            said = assembly.part(dropped_name(index), {HIDDEN: made[HIDDEN_OUT]})
        cuts.append(PassedCut(present, filled, places, said))
        positions = assembly.node("GatherElements", [positions, places], axis=1)
        number = assembly.node("Cast", [protected], to=_INT)  # runtimes gather numbers
        number = assembly.node("GatherElements", [number, places], axis=1)
        protected = assembly.node("Cast", [number], to=_BOOL)
        present, hidden = filled, compacted
        named = survivors_name(index)
        nowhere = assembly.constant(-1)
        kept = assembly.node("Where", [filled, positions, nowhere], "" if plugin else named)
        if plugin:
            _widened(assembly, kept, shape, named)
    tensors = {HIDDEN: hidden, ATTENTION_MASK: present, POSITIONS: positions}
    answers = assembly.part(last, tensors)
    for output in outputs:
        joined = JOINED[output.per](assembly, cuts, output.name, answers[output.name])
        assembly.node("Identity", [joined], output.name)
    described = {value.name: value for name in (first, last) for value in _tensors(graphs[name])}
    inputs = [
        described.get(name) or helper.make_tensor_value_info(name, _BOOL, ["B", "S"])
        for name in given
    ]
    survivors = [
        helper.make_tensor_value_info(
            survivors_name(index), _INT, ["B", "S" if plugin else f"K{index}"]
        )
        for index in range(len(reduction.cuts))
    ]
    functions = [
        wanted_tokens(cut.rule, _wanted(index)) for index, cut in enumerate(reduction.cuts)
    ]
    return assembly.model(
        CHAIN,
        inputs,
        [*(described[output.name] for output in outputs), *survivors],
        functions if plugin else [compact_tokens(), *functions],
    )


def require_one_graph(
    reduction: ReductionConfig, outputs: Sequence[Output], takes_matches: bool = False
) -> None:
    """Refuse what is no chain, or cannot be one graph.

    Args:
        takes_matches: whether the last segment hears what a lexicon says.

    Raises:
        ConfigError: it is not, or cannot.
    """
    if takes_matches:
        raise ConfigError(
            "the model takes a lexicon, and the graph of a whole chain cannot: export it without "
            "--fused"
        )
    if not reduction.cuts:
        raise ConfigError(
            "the checkpoint has no cuts, and dense.onnx is one graph already: export it without "
            "--fused"
        )
    if asked_token(outputs) is not None:
        raise ConfigError(
            "the model answers for some of a text's tokens alone, which one graph of the whole "
            "chain cannot tell: export it without --fused"
        )


def _numbers_to(assembly: Assembly, length: str) -> str:
    """0, 1, ... up to a number [1]."""
    stop = assembly.node("Squeeze", [length])
    return assembly.node("Range", [assembly.constant(0), stop, assembly.constant(1)])


def _widened(assembly: Assembly, kept: str, shape: str, name: str) -> None:
    """Survivors [B, K] in a tensor [B, S], whose size follows from that of ids."""
    nobody = assembly.node("Expand", [assembly.constant(-1), shape])
    numbers = _numbers_to(assembly, assembly.node("Shape", [kept], start=1, end=2))
    slot = assembly.node("Expand", [numbers, assembly.node("Shape", [kept])])
    assembly.node("ScatterElements", [nobody, slot, kept], name, axis=1)


def _slots(assembly: Assembly, capacity: Capacity, length: str) -> str:
    """``Capacity.slots`` of a length [1]."""
    parts = assembly.node("Mul", [length, assembly.constant([capacity.parts])])
    parts = assembly.node("Add", [parts, assembly.constant([PARTS - 1])])
    share = assembly.node("Div", [parts, assembly.constant([PARTS])])
    slots = assembly.node("Add", [share, assembly.constant([capacity.room])])
    return assembly.node("Min", [slots, assembly.constant([MOST_SLOTS])])


def _wanted(cut: int) -> str:
    return f"WantedTokens{cut}"


def _tensors(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [*model.graph.input, *model.graph.output]
