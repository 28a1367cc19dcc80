"""Finds the operating point that answers within a latency budget, from measured latencies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.errors import ConfigError
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.autotune.cache import remembered
from trbert_deploy.runtime.autotune.conditions import chain_conditions
from trbert_deploy.runtime.autotune.remarks import of_which_rows
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.samples import sample_rows
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.selection.operating_point import OperatingPoint

#: Those that are measured: 0, which keeps everything, and those of keep logits in even steps.
THRESHOLDS = (0.0, *(1.0 / (1.0 + np.exp(-np.linspace(-4.0, 4.0, 17)))).round(6).tolist())
ROWS = 3
ROUNDS = 3

#: Threshold and the milliseconds that it takes, by rising threshold.
LatencyTable = Sequence[tuple[float, float]]


def threshold_within(
    bundle: Bundle,
    chain: Chain,
    budget_ms: float,
    note: Callable[[str], None],
    progress: Progress = no_progress,
) -> float:
    """The threshold that drops least of those that take at most ``budget_ms``.

    The latencies are measured on this machine once, and remembered.

    Args:
        chain: on the backend that will run.
        budget_ms: milliseconds from a row's tokens to its logits, in the median over rows of the
            longest length that the bundle takes; shorter ones take less.
        note: told what was found; and where no threshold is fast enough, that the fastest serves.

    Raises:
        ConfigError: the budget is no time.
    """
    if not (budget_ms > 0 and math.isfinite(budget_ms)):
        raise ConfigError(f"the latency budget is {budget_ms:g} ms: expected more than 0")
    threshold, spent = within(latency_table(bundle, chain, note, progress), budget_ms)
    note(
        f"threshold {threshold:.3f} takes {spent:.1f} ms for {bundle.manifest.max_length} tokens "
        "here"
        + (
            f", the fastest there is: the budget of {budget_ms:g} ms is missed"
            if spent > budget_ms
            else ""
        )
        + of_which_rows(bundle)
    )
    return threshold


def latency_table(
    bundle: Bundle,
    chain: Chain,
    note: Callable[[str], None],
    progress: Progress = no_progress,
) -> LatencyTable:
    """What rows of the longest length take at each threshold, from the last time or measured now.

    Args:
        note: told that another process has its turn.
    """
    length = bundle.manifest.max_length
    chain = chain.to_the_end()  # a text that does not leave is to be within the budget, too
    found = remembered(
        "latency",
        chain_conditions(bundle, chain) | {"length": length},
        lambda: measure(chain, sample_rows(bundle, [length], ROWS), progress=progress),
        note,
    )
    return [(float(threshold), float(spent)) for threshold, spent in found]


def within(table: LatencyTable, budget_ms: float) -> tuple[float, float]:
    """The lowest threshold that takes at most so long, or else the fastest; and its time."""
    fitting = [(threshold, spent) for threshold, spent in table if spent <= budget_ms]
    return min(fitting) if fitting else min(table, key=lambda point: point[1])


def measure(
    chain: Chain,
    rows: Sequence[TokenRow],
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = no_progress,
) -> LatencyTable:
    """Median milliseconds a row at each threshold, measured in turns."""
    chains = [chain.at(OperatingPoint(threshold)) for threshold in THRESHOLDS]
    spent = np.empty((ROUNDS + 1, len(rows), len(chains)))
    done = 0
    for number in range(ROUNDS + 1):  # the first warms up
        for place, row in enumerate(rows):
            for index, each in enumerate(chains):
                progress("measure latencies", done, spent.size)
                start = clock()
                each.run([row])
                spent[number, place, index] = 1e3 * (clock() - start)
                done += 1
    progress("measure latencies", done, spent.size)
    medians = np.median(spent[1:], axis=(0, 1)).round(3).tolist()
    return list(zip(THRESHOLDS, medians, strict=True))
