"""What all tokens of a row say, inside a graph: some left at a cut, and some at the end.

As ``runtime/gathering.py`` has it of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from trbert_deploy.exporters.onnx.assembly import Assembly

_FLOAT, _INT, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
_LEAST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class PassedCut:
    """A cut that the chain has passed, as names of tensors.

    Attributes:
        present: before it, [B, S] bool.
        filled, places: [B, K], as ``CompactTokens`` gives them.
        said: what each of its tokens says, [B, S, X] by output, where that is heard.
    """

    present: str
    filled: str
    places: str
    said: Mapping[str, str]

    def dropped(self, assembly: Assembly) -> str:
        """Which tokens leave here: [B, S] bool."""
        numbers = assembly.node("Cast", [self.present], to=_INT)
        stay = assembly.node("Cast", [self.filled], to=_INT)
        gone = assembly.node("Sub", [assembly.constant(1), stay])
        there = assembly.node("GatherElements", [numbers, self.places], axis=1)
        still = assembly.node("Mul", [gone, there])
        left = assembly.node("ScatterElements", [numbers, self.places, still], axis=1)
        return assembly.node("Cast", [left], to=_BOOL)


def _row(assembly: Assembly, cuts: Sequence[PassedCut], name: str, answer: str) -> str:
    return answer


def _each(assembly: Assembly, cuts: Sequence[PassedCut], name: str, answer: str) -> str:
    """Of every token what it said when it left: [B, S, X]."""
    for cut in reversed(cuts):
        said, axis = cut.said[name], assembly.constant([-1])
        index = assembly.node("Unsqueeze", [cut.places, axis])
        index = assembly.node("Expand", [index, assembly.node("Shape", [answer])])
        filled = assembly.node("Unsqueeze", [cut.filled, axis])
        before = assembly.node("GatherElements", [said, index], axis=1)
        values = assembly.node("Where", [filled, answer, before])
        answer = assembly.node("ScatterElements", [said, index, values], axis=1)
    return answer


def _mean(assembly: Assembly, cuts: Sequence[PassedCut], name: str, answer: str) -> str:
    """The mean of what all tokens said: [B, X]."""
    total = assembly.node("Mul", [answer, _count(assembly, cuts[-1].filled)])
    for cut in cuts:
        total = assembly.node("Add", [total, _summed(assembly, cut.dropped(assembly), cut, name)])
    return assembly.node("Div", [total, _count(assembly, cuts[0].present)])


def _largest(assembly: Assembly, cuts: Sequence[PassedCut], name: str, answer: str) -> str:
    """The largest of what all tokens said: [B, X]."""
    for cut in cuts:
        dropped = assembly.node("Unsqueeze", [cut.dropped(assembly), assembly.constant([-1])])
        least = assembly.constant(_LEAST, np.float32)
        values = assembly.node("Where", [dropped, cut.said[name], least])
        most = assembly.node("ReduceMax", [values, assembly.constant([1])], keepdims=0)
        answer = assembly.node("Max", [answer, most])
    return answer


#: What an output is of -> how what dropped tokens said is put together with what the others do:
#: (graph, cuts, output, its value at the end) -> the whole.
JOINED: Mapping[str, Callable[[Assembly, Sequence[PassedCut], str, str], str]] = {
    "row": _row,
    "token": _each,
    "mean": _mean,
    "max": _largest,
}


def _summed(assembly: Assembly, chosen: str, cut: PassedCut, name: str) -> str:
    """The sum of what some tokens say: [B, X]."""
    weights = assembly.node("Cast", [chosen], to=_FLOAT)
    weights = assembly.node("Unsqueeze", [weights, assembly.constant([1])])  # [B, 1, S]
    sums = assembly.node("MatMul", [weights, cut.said[name]])
    return assembly.node("Squeeze", [sums, assembly.constant([1])])


def _count(assembly: Assembly, chosen: str) -> str:
    """How many tokens are chosen: [B, 1] float32."""
    numbers = assembly.node("Cast", [chosen], to=_FLOAT)
    return assembly.node("ReduceSum", [numbers, assembly.constant([1])], keepdims=1)
