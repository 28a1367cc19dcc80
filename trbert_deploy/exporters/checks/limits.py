"""How far a chain may be from the one that it stands for: all limits, with the reasons."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trbert_deploy.bundle.manifest import KEEP_LOGIT


@dataclass(frozen=True)
class Limits:
    """What a comparison must keep to.

    Attributes:
        tolerance: largest difference of outputs (of rows with the same survivors, and of the dense
            model), relative to the largest expected value where that is above 1.
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


#: Placeholders
LIMITS = {
    "fp32": Limits(2e-4, 2e-4, 0.05, 0.99, 0.95),
    "fp16": Limits(40 * 2.0**-11, 40 * 2.0**-11, 1.0, 0.99, 0.9),
    "bf16": Limits(40 * 2.0**-8, 40 * 2.0**-8, 1.0, 0.98, 0.9),
    "int8": Limits(0.3, 0.5, 1.0, 0.97, 0.97),
}

#: Of a comparison that is only reported.
NO_LIMITS = Limits(math.inf, math.inf, 1.0, 0.0, 0.0)
