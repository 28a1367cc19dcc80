"""Compaction inside a graph: gathers survivors without asking the host for a shape.

It is the building block for a chain that stays on the device: between two segments the host
says only how many slots there are (a capacity from a fixed schedule), so nothing is copied
back and nothing waits. Standard ONNX operators with shapes that follow from their inputs;
``NonZero`` and ``Compress``, whose shapes follow from data, are what TensorRT cannot take.
The chain in ``runtime`` compacts in numpy and does not use it yet.
"""

from __future__ import annotations

import onnx
import onnx.parser

HIDDEN = "hidden"
KEEP = "keep"
CAPACITY = "capacity"
COMPACTED = "compacted"
MASK = "mask"

#: Above every position, and exact in float32 together with one.
_RANK_OF_KEPT = 2**22

# A kept token's key is far above a dropped one's and falls with its position: the largest
# keys in order are the survivors in text order, then whatever fills the slots left.
_TEXT = f"""
<ir_version: 10, opset_import: ["": 23]>
compaction (float[B, S, H] {HIDDEN}, bool[B, S] {KEEP}, int64[1] {CAPACITY})
    => (float[B, K, H] {COMPACTED}, bool[B, K] {MASK})
<float rank_of_kept = {{{_RANK_OF_KEPT}}}, float half_rank = {{{_RANK_OF_KEPT // 2}}},
 float zero = {{0}}, int64 start = {{0}}, int64 step = {{1}}, int64[1] last = {{-1}}>
{{
    length = Shape <start = 1, end = 2> ({KEEP})
    stop = Squeeze (length)
    places = Range (start, stop, step)
    position = Cast <to = 1> (places)
    rank = Where ({KEEP}, rank_of_kept, zero)
    key = Sub (rank, position)
    best, place = TopK <axis = 1, largest = 1, sorted = 1> (key, {CAPACITY})
    {MASK} = Greater (best, half_rank)
    index = Unsqueeze (place, last)
    gathered = GatherND <batch_dims = 1> ({HIDDEN}, index)
    filled = Unsqueeze ({MASK}, last)
    {COMPACTED} = Where (filled, gathered, zero)
}}
"""


def compaction_model() -> onnx.ModelProto:
    """A model that gathers the survivors of every row to its front, in text order.

    Inputs: ``hidden`` [B, S, H] float32; ``keep`` [B, S] bool; ``capacity`` [1] int64, the
    slots K per row, from 1 to S and, for TensorRT, below 3840. A row with more survivors than
    slots loses its last ones.
    Outputs: ``compacted`` [B, K, H] float32, zero in slots left over; ``mask`` [B, K] bool,
    True in slots with a survivor.
    """
    model = onnx.parser.parse_model(_TEXT)
    onnx.checker.check_model(model, full_check=True)
    return model
