"""How far a chain may be from the one that it stands for: every limit, and why it is that.

What is broken (a lost layer, a wrong mask, an overflow, swapped labels) is off by the size of the
values themselves; what is rounded is off by some roundings. The limits stand between the two, in
multiples of what was measured on seeded random models, on MiniLM with random policies and on
MiniLM trained on film reviews and on documentation:

              keep logits   outputs   tokens with another fate
    fp32      2e-6          5e-7      none
    fp16      0.002         0.001     0.04 %
    bf16      0.013         0.02      0.35 %
    int8      0.16          0.015     1.5 %; 2.1 % on small random models
    engines whose products are of 8 bits, MiniLM's sentence embeddings and random policies:
    int8      0.03          0.08      2.2 %
    fp8       0.03          0.07      2.1 %
    (a classifier that loses 3 of 32 answers to them, and has outputs off by 0.3, is refused)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from trbert_deploy.bundle.manifest import KEEP_LOGIT


@dataclass(frozen=True)
class Limits:
    """What a comparison must keep to.

    Attributes:
        tolerance: largest difference of states and outputs (of rows with the same survivors, and
            of the dense model), relative to the largest expected value where that is above 1.
        logit_tolerance: the same of keep logits, where both sides score the same tokens.
        rows_apart: largest share of the rows that may have other survivors.
        survivor_agreement: least share of the tokens that meet the same fate, cut by cut.
        answer_agreement: least mean agreement of the answers, as the task says.
    """

    tolerance: float
    logit_tolerance: float
    rows_apart: float
    survivor_agreement: float
    answer_agreement: float

    def tolerance_of(self, output: str) -> float:
        """Largest relative difference of the graphs' output called ``output``."""
        return self.logit_tolerance if output == KEEP_LOGIT else self.tolerance


#: Roundings of the type that are allowed: nine times what was measured of fp16, eight of bf16.
_ROUNDINGS = 40

#: Precision -> its limits.
LIMITS = {
    # A token is kept by one side alone if its keep logit is within some 1e-6 of the boundary. In
    # the 24 rows of an export that is less than one of them, and its answer may then turn, too.
    "fp32": Limits(
        tolerance=2e-4,
        logit_tolerance=2e-4,
        rows_apart=0.05,
        survivor_agreement=0.99,
        answer_agreement=0.95,
    ),
    # In half precision every long row may lose a few other tokens, so that rows are not counted;
    # of the 16 answers that are compared one may be a close call that turns.
    "fp16": Limits(
        tolerance=_ROUNDINGS * 2.0**-11,
        logit_tolerance=_ROUNDINGS * 2.0**-11,
        rows_apart=1.0,
        survivor_agreement=0.99,
        answer_agreement=0.9,
    ),
    "bf16": Limits(
        tolerance=_ROUNDINGS * 2.0**-8,
        logit_tolerance=_ROUNDINGS * 2.0**-8,
        rows_apart=1.0,
        survivor_agreement=0.98,
        answer_agreement=0.9,
    ),
    # Eight bits cost something, which `evaluate` tells; beyond this it is not worth asking. Of 48
    # answers one may turn.
    "int8": Limits(
        tolerance=0.2,
        logit_tolerance=0.5,
        rows_apart=1.0,
        survivor_agreement=0.97,
        answer_agreement=0.97,
    ),
}

#: Of engines whose products are of 8 bits, ranges found on few texts; of 32 answers two may turn.
_EIGHT_BITS = replace(LIMITS["int8"], survivor_agreement=0.95, answer_agreement=0.93)

#: Precision of engines -> the limits that their graphs keep to.
ENGINE_LIMITS = {**LIMITS, "int8": _EIGHT_BITS, "fp8": _EIGHT_BITS}

#: Of a comparison that is only reported.
NO_LIMITS = Limits(math.inf, math.inf, 1.0, 0.0, 0.0)
