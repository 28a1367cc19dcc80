"""What a service counts."""

from __future__ import annotations

import numpy as np

from trbert_deploy.runtime.chain import Timing
from trbert_deploy.runtime.token_state import RowResult, TokenRow
from trbert_deploy.serving.metrics import Metrics


def test_rows_that_left_are_counted_by_cut() -> None:
    metrics = Metrics()
    model = metrics.of_model("mine", lambda: 0, None)
    row, nothing = TokenRow(np.arange(4), np.zeros(4, np.int64)), np.zeros(0, np.int64)
    ended = RowResult({}, (np.arange(3), np.arange(2)))
    first = RowResult({}, (nothing, nothing), exit=0)
    second = RowResult({}, (np.arange(2), nothing), exit=1)
    model.ran([row] * 4, [ended, first, second, second], Timing())
    text = metrics.text().decode()
    assert 'trbert_left_rows_total{cut="0",model="mine"} 1.0' in text
    assert 'trbert_left_rows_total{cut="1",model="mine"} 2.0' in text
    assert 'trbert_kept_tokens_total{cut="0",model="mine"} 7.0' in text
    model.ran([row], [ended], Timing())
    assert 'trbert_rows_total{model="mine"} 5.0' in metrics.text().decode()
