"""``CompactTokens`` as ONNX functions: selection and compaction inside a graph.

Standard operators, whose shapes follow from their inputs and from ``capacity``: what TensorRT takes
where that is reckoned from the length, and every other runtime where it is the survivors' own
number. ``NonZero`` and ``Compress``, whose shapes follow from data, are what TensorRT cannot take.
"""

from __future__ import annotations

from fractions import Fraction

import onnx
import onnx.parser

from trbert_deploy.plugins import DOMAIN, OPERATOR
from trbert_deploy.selection.rules import SelectionRule
from trbert_deploy.selection.select import least_logit

OPSET = 23

#: Above every logit that counts, and below all of them; finite, as TensorRT wants it.
_PROTECTED, _LARGEST = 3.3e38, 3.2e38
#: A ratio is as near as this many parts of one to what a rule says.
_PARTS = 10**6

_HEAD = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>'

# The first TopK ranks tokens as the rule does, ties to the earlier one; the second brings those
# that survive into text order, before whatever fills the slots left.
_COMPACT = f"""
{_HEAD}
{OPERATOR} (hidden, keep_logit, present, protected, wanted, capacity)
    => (compacted, filled, places)
{{
    above = Constant <value_float = {_PROTECTED}> ()
    largest = Constant <value_float = {_LARGEST}> ()
    below = Neg (above)
    least = Neg (largest)
    start = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    last = Constant <value_ints = [-1]> ()
    score = Clip (keep_logit, least, largest)
    ranked = Where (protected, above, score)
    priority = Where (present, ranked, below)
    best, order = TopK <axis = 1, largest = 1, sorted = 1> (priority, capacity)
    slots = Squeeze (capacity)
    slot = Range (start, slots, step)
    filled = Less (slot, wanted)
    length = Shape <start = 1, end = 2> (keep_logit)
    place_behind = Add (order, length)
    place = Where (filled, order, place_behind)
    ascending = Neg (place)
    key = Cast <to = 1> (ascending)
    first, rank = TopK <axis = 1, largest = 1, sorted = 1> (key, capacity)
    places = GatherElements <axis = 1> (order, rank)
    index = Unsqueeze (places, last)
    compacted = GatherND <batch_dims = 1> (hidden, index)
}}
"""

# How many survive by a rule, before rounding: [B, 1] int64.
_THRESHOLD = """
    least = Constant <value_float = {least}> ()
    passing = GreaterOrEqual (keep_logit, least)
    passing_or_protected = Or (passing, protected)
    surviving = And (passing_or_protected, present)
    ones = Cast <to = 7> (surviving)
    asked = ReduceSum <keepdims = 1> (ones, axis)
"""
_RATIO = """
    numerator = Constant <value_ints = [{numerator}]> ()
    denominator = Constant <value_ints = [{denominator}]> ()
    almost_denominator = Constant <value_ints = [{almost}]> ()
    parts = Mul (length, numerator)
    parts_up = Add (parts, almost_denominator)
    asked = Div (parts_up, denominator)
"""
_BUDGET = """
    asked = Constant <value_ints = [{budget}]> ()
"""
_WANTED = f"""
{_HEAD}
WantedTokens (keep_logit, present, protected) => (wanted)
{{{{
    axis = Constant <value_ints = [1]> ()
    tokens = Cast <to = 7> (present)
    length = ReduceSum <keepdims = 1> (tokens, axis)
    {{by_rule}}
    protected_and_present = And (protected, present)
    always = Cast <to = 7> (protected_and_present)
    least_wanted = ReduceSum <keepdims = 1> (always, axis)
    before_rounding = Max (asked, least_wanted)
    multiple = Constant <value_ints = [{{round_to}}]> ()
    almost_multiple = Constant <value_ints = [{{almost_round_to}}]> ()
    raised = Add (before_rounding, almost_multiple)
    multiples = Div (raised, multiple)
    rounded = Mul (multiples, multiple)
    wanted = Min (rounded, length)
}}}}
"""


def compact_tokens() -> onnx.FunctionProto:
    """``CompactTokens``: the ``wanted`` best tokens of every row to its front, in text order.

    Inputs: ``hidden`` [B, S, H] of any type; ``keep_logit`` [B, S] float32; ``present`` [B, S]
    bool, False for padding behind a row; ``protected`` [B, S] bool, tokens that must survive;
    ``wanted`` [B, 1] int64, survivors of each row; ``capacity`` [1] int64, the slots K per row,
    from 1 to S and, for TensorRT, at most 3840.
    Outputs: ``compacted`` [B, K, H]; ``filled`` [B, K] bool, True in the slots of survivors, which
    come first; ``places`` [B, K] int64, where each slot's token stood: no token twice. Of a row
    that wants more than there are slots the least of its tokens are missing; what lies in slots
    left over are tokens that were dropped.
    """
    return onnx.parser.parse_function(_COMPACT)


def wanted_tokens(rule: SelectionRule, name: str = "WantedTokens") -> onnx.FunctionProto:
    """``WantedTokens``: how many of its tokens each row keeps by a rule, as ``select`` has it.

    Inputs: ``keep_logit``, ``present``, ``protected`` as ``CompactTokens`` takes them. Output:
    ``wanted`` [B, 1] int64.

    Args:
        name: of the function, of which a graph may have several.
    """
    if rule.kind == "threshold":
        by_rule = _THRESHOLD.format(least=min(max(least_logit(rule.value), -_LARGEST), _LARGEST))
    elif rule.kind == "ratio":
        ratio = Fraction(rule.value).limit_denominator(_PARTS)
        by_rule = _RATIO.format(
            numerator=ratio.numerator,
            denominator=ratio.denominator,
            almost=ratio.denominator - 1,
        )
    else:
        by_rule = _BUDGET.format(budget=int(rule.value))
    round_to = int(rule.round_to)
    function = onnx.parser.parse_function(
        _WANTED.format(by_rule=by_rule, round_to=round_to, almost_round_to=round_to - 1)
    )
    function.name = name
    return function
