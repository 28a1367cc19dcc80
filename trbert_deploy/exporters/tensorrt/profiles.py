"""What each engine of a bundle is tuned for: as many tokens as the cuts before it leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trbert_deploy.bundle.manifest import HEAD, Manifest, dropped_name, segment_name
from trbert_deploy.runtime.backends.tensorrt.engine_set import Profile, engine_sources
from trbert_deploy.runtime.gathering import only_means
from trbert_deploy.selection.capacity import Capacity
from trbert_deploy.selection.rules import SelectionRule
from trbert_deploy.selection.select import first_token, select
from trbert_deploy.tasks.registry import task_of


def engine_profiles(
    manifest: Manifest, buckets: Sequence[Profile]
) -> dict[str, tuple[Profile, ...]]:
    """Name of each engine of a bundle -> its profiles, in ascending length.

    All engines take the same lengths, divided alike, since a row may keep all of its tokens, and
    may be run at another operating point. Behind a cut a profile is tuned for what is left of a
    row that fills a bucket: the longest such row that it takes. Rows are regrouped there by what is
    left of them, so that any number of them may come together, one alone included.

    Args:
        buckets: what whole rows are run with, each beginning where the one before ends.
    """
    whole = tuple(buckets)
    profiles = dict.fromkeys(engine_sources(manifest), whole)
    entering = [tokens_at_cuts(manifest, bucket.max_length) for bucket in whole]
    outputs = task_of(manifest.encoder).outputs
    for cut in range(len(manifest.reduction.cuts)):
        profiles[segment_name(cut + 1)] = _tuned(whole, [row[cut + 1] for row in entering])
        if dropped_name(cut) in profiles:
            dropped = [row[cut] - row[cut + 1] for row in entering]
            heard = [1 if only_means(outputs) else number for number in dropped if number]
            profiles[dropped_name(cut)] = _tuned(whole, heard)
    if HEAD in profiles:  # a text has one masked word, as a rule
        profiles[HEAD] = _tuned(whole, [1])
    return profiles


def tokens_at_cuts(manifest: Manifest, length: int) -> list[int]:
    """Tokens of a row of ``length`` at first, and what of them is left behind each cut, as a rule.

    A budget and a ratio say it. What a threshold leaves is known where sample texts were counted
    (``Manifest.capacities``, of the texts that keep most); elsewhere it is taken to be all.
    """
    left = [length]
    for place, cut in enumerate(manifest.reduction.cuts):
        capacity = manifest.capacities[place] if manifest.capacities else None
        left.append(_survivors(cut.rule, left[-1], capacity, length))
    return left


def _survivors(rule: SelectionRule, tokens: int, capacity: Capacity | None, length: int) -> int:
    """Of so many tokens of a row of ``length``."""
    if rule.kind != "threshold":
        # Which ones depends on keep logits, how many does not.
        alike = np.zeros((1, tokens), np.float32)
        return int(select(alike, None, rule, first_token(tokens)[None]).sum())
    return tokens if capacity is None else min(tokens, capacity.slots(length))


def _tuned(buckets: Sequence[Profile], lengths: Sequence[int]) -> tuple[Profile, ...]:
    """Profiles of the buckets, each tuned for the longest of some lengths that it takes.

    Where it takes none, it is for the few rows that keep more than others, up to its longest.
    """
    made = []
    for bucket in buckets:
        taken = [each for each in lengths if bucket.min_length <= each <= bucket.max_length]
        opt_length = max(taken, default=bucket.max_length)
        made.append(replace(bucket, min_batch=1, opt_length=opt_length))
    return tuple(made)
