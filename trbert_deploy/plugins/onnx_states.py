"""Graphs that bring hidden states together in a device's memory, for the runtimes that have it.

    python -m trbert_deploy.plugins.onnx_states

writes them beside this file, where a server without the package onnx finds them.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser

from trbert_deploy.runtime.device_arrays import MEAN_GRAPH, TAKE_GRAPH

# The opset and format of ONNX Runtime 1.14 and TensorRT 8.6, the oldest that read them.
_HEAD = '<ir_version: 8, opset_import: ["": 17]>'
_TAKE = f"""
{_HEAD}
take (float[N, H] states, int64[B, K] places) => (float[B, K, H] taken)
{{
    taken = Gather <axis = 0> (states, places)
}}
"""
_MEAN = f"""
{_HEAD}
mean (float[N, H] states, int64[B, K] places, float[B, 1, K] weights) => (float[B, 1, H] taken)
{{
    rows = Gather <axis = 0> (states, places)
    taken = MatMul (weights, rows)
}}
"""


def take_states() -> onnx.ModelProto:
    """States at some places: ``states`` [N, H], ``places`` [B, K] -> ``taken`` [B, K, H]."""
    return onnx.parser.parse_model(_TAKE)


def mean_states() -> onnx.ModelProto:
    """Weighted means of them, ``weights`` [B, 1, K]: ``taken`` [B, 1, H]."""
    return onnx.parser.parse_model(_MEAN)


#: Name of a file -> what makes it.
GRAPHS = {TAKE_GRAPH: take_states, MEAN_GRAPH: mean_states}


def main() -> None:
    """Write the graphs."""
    for name, make in GRAPHS.items():
        Path(__file__).with_name(name).write_bytes(make().SerializeToString())


if __name__ == "__main__":
    main()
