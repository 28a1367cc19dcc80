"""Finds the length from which the chain answers sooner than the dense model.

On short texts nothing much is left to save, and a chain is several calls where the dense model is
one: a runtime whose calls of the whole model take a millisecond or two loses there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.autotune.cache import remembered
from trbert_deploy.runtime.autotune.conditions import chain_conditions
from trbert_deploy.runtime.autotune.remarks import of_which_rows
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.samples import sample_rows
from trbert_deploy.runtime.token_state import TokenRow

LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
#: Lengths in a row at which the chain must win, so that a lucky one does not end the search.
WINS = 2
ROWS = 4
ROUNDS = 5
#: Times that a model runs the rows in its turn; the first finds what the other left in the caches.
PASSES = 4

#: Seconds since whenever.
Clock = Callable[[], float]


def break_even(
    bundle: Bundle,
    chain: Chain,
    note: Callable[[str], None],
    progress: Progress = no_progress,
) -> int:
    """The number of tokens from which the chain is faster than the dense model.

    It is measured on this machine once, and remembered.

    Args:
        chain: on the backend that will run; it drops tokens at every length.
        note: told what was found.

    Returns:
        Rows of fewer tokens are faster dense; 0 where none are.
    """
    key = chain_conditions(bundle, chain)
    measured = remembered(
        "break-even", key, lambda: measure(bundle, chain, progress=progress), note
    )
    below = int(measured)
    said = (
        f"texts of fewer than {below} tokens are faster dense here, and keep all of them"
        if below
        else "no text is faster dense here"
    )
    note(said + of_which_rows(bundle))
    return below


def measure(
    bundle: Bundle,
    chain: Chain,
    clock: Clock = time.perf_counter,
    progress: Progress = no_progress,
) -> int:
    """Go up the lengths until the chain wins."""
    longest = bundle.manifest.max_length
    lengths = [length for length in LENGTHS if length <= longest]
    below = wins = 0
    for place, length in enumerate(lengths):
        progress(f"measure texts of {length} tokens", place, len(lengths))
        if is_dense_faster(chain, sample_rows(bundle, [length], ROWS), clock):
            below = lengths[place + 1] if place + 1 < len(lengths) else longest + 1
            wins = 0
        else:
            wins += 1
        if wins == WINS:
            break
    progress("measure texts", len(lengths), len(lengths))
    return below


def is_dense_faster(
    chain: Chain, rows: Sequence[TokenRow], clock: Clock = time.perf_counter
) -> bool:
    """Whether the dense model takes less time for single rows, in the median.

    Each model runs for a while before the other has its turn: on a server it finds its own weights
    in the caches.
    """
    runs = {True: chain.run_dense, False: chain.run}
    spent: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for dense, run in runs.items():
            for number, row in enumerate([*rows] * PASSES):
                start = clock()
                run([row])
                if number >= len(rows):
                    spent[dense].append(clock() - start)
    return bool(np.median(spent[True]) < np.median(spent[False]))
