"""What a person is told before hours are spent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trbert_deploy.compress.options import CompressOptions
from trbert_deploy.compress.probe import Payoff
from trbert_deploy.compress.texts import SplitTexts
from trbert_deploy.machine import cores, processor
from trbert_deploy.training.recipe import EXITS


def forecast(
    options: CompressOptions,
    texts: SplitTexts,
    payoff: Payoff,
    seconds: Mapping[str, float],
    runs: int,
    bundle_bytes: int,
    places: tuple[str, str],
) -> Iterator[str]:
    """Lines that say what will be learned from, what it will gain, how long it takes, what it
    writes.

    Args:
        payoff: of a model that is worth the time.
        seconds: of each stage of training.
        runs: that are averaged.
        bundle_bytes: size of a bundle of this model.
        places: where the bundle will lie, and what lies between.
    """
    judge = "their labels" if texts.labelled else "how far answers agree with the model's own"
    yield (
        f"{texts.train:,} texts to learn from, {texts.validation:,} to validate by and "
        f"{texts.test:,} held out, {payoff.tokens_per_text:.0f} tokens each; judged by {judge}"
    )
    assert payoff.dense_ms is not None and payoff.reduced_ms is not None
    yield (
        f"with {options.target_speedup:g} times fewer operations a text takes "
        f"{payoff.reduced_ms:.1f} ms instead of {payoff.dense_ms:.1f} on {processor()}, "
        f"{cores()} cores: {payoff.dense_ms / payoff.reduced_ms:.1f} times less"
    )
    if EXITS in seconds:
        yield (
            "texts that are easy will leave at the cuts, which saves more: how many, and how much, "
            "is known once exits have learned, as the last stage"
        )
    parts = ", ".join(f"{name} {rough_time(spent)}" for name, spent in seconds.items())
    yield (
        f"training takes about {rough_time(sum(seconds.values()))} here ({parts}); if it is "
        "interrupted, the same command goes on"
    )
    # A checkpoint of each stage and the newest one, what a stage needs to go on (weights, two
    # moments, the best ones), the runs, two bundles.
    copies = len(seconds) + 1 + 4 + runs + 2
    yield (
        f"it writes {places[0]} ({bundle_bytes / 2**20:,.0f} MiB) at the end, and up to "
        f"{copies * bundle_bytes / 2**30:.1f} GiB in {places[1]}, which can be removed then"
    )


def rough_time(seconds: float) -> str:
    """A time as a person would tell it beforehand."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
