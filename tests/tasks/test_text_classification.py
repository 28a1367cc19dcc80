"""The task alone: what its figures mean."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn.functional import kl_div

from trbert_deploy.tasks.text_classification import LOGITS, TextClassification

logits = arrays(np.float32, (3,), elements=st.floats(-20, 20, width=32))


@given(logits, logits)
def test_divergence_is_that_of_the_probabilities(one: np.ndarray, other: np.ndarray) -> None:
    task = TextClassification(("a", "b", "c"))
    found = task.divergence({LOGITS: one}, {LOGITS: other})
    teacher, student = (torch.from_numpy(each).double().log_softmax(-1) for each in (one, other))
    expected = kl_div(student, teacher, reduction="sum", log_target=True).item()
    assert found >= 0.0
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert task.divergence({LOGITS: one}, {LOGITS: one + np.float32(2.0)}) < 1e-5
