"""Fits what ``bench --device-model`` reckons with to the times in docs/performance-gpu.md.

    python benchmarks/fit_device_model.py

The document has each model's times under random weights whose cuts leave 50 % and 15 % of the
tokens. Found are the shares of the device's peak that kernels reach, and what they cost besides,
by the least mean of the ratios' logarithms. Very different shares fit alike, so those are preferred
that kernels usually reach. Told is how far what is reckoned then is from each time, and how far
from a model's times when it is fitted to the other's alone.
"""

from __future__ import annotations

import sys
from dataclasses import astuple, dataclass
from pathlib import Path

import click
import numpy as np
from gpu import KEPT, SHAPES, make_model
from numpy.typing import NDArray
from rich.table import Table
from scipy.optimize import minimize

from trbert_deploy import console
from trbert_deploy.bench.device_model import DEVICES, FITTED, Kernel, Shares, kernels, seconds

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance-gpu.md"
STARTS = 8
#: What products, attention and copies usually reach of a peak, and how much being elsewhere weighs.
USUAL, WEIGHT = np.array([0.7, 0.4, 0.7]), 0.1


@dataclass(frozen=True)
class Time:
    """A time of the document, and the work that took it.

    Attributes:
        name: what it is of.
        recorded: whether it is of a recording.
        ms: milliseconds.
        work: its kernels.
        cuts: as ``seconds`` takes them.
    """

    name: str
    recorded: bool
    ms: float
    work: tuple[Kernel, ...]
    cuts: int | None


def read_times(text: str) -> list[Time]:
    """The times in half precision of a document as ``gpu.py`` writes it."""
    models = {name: make_model(name, 2048, SHAPES) for name in SHAPES}
    times = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 12 or cells[0] not in SHAPES or cells[2] == "fp32":
            continue
        spec, reduction = models[cells[0]].spec, models[cells[0]].reduction
        batch, length = map(int, cells[1].split(" x "))
        rows = [(length, *(int(share * length) for share in KEPT))] * batch
        recorded = cells[3] == "one recording"
        for chain, ms in ((None, cells[5] or cells[4].replace(",", "")), (reduction, cells[6])):
            waits = None if recorded else (len(reduction.cuts) if chain else 0)
            name = " ".join([*cells[:4], "reduced" if chain else "dense"])
            work = tuple(kernels(spec, chain, rows))
            times.append(Time(name, recorded, float(ms), work, waits))
    return times


def ratio(time: Time, shares: Shares) -> float:
    """What is reckoned over what was measured."""
    return 1e3 * seconds(DEVICES["h100"], time.work, cuts=time.cuts, shares=shares) / time.ms


def fit(times: list[Time]) -> Shares:
    """The shares that come nearest, from several starts."""

    def shares_of(values: NDArray[np.float64]) -> Shares:
        of_peak = 1 / (1 + np.exp(-values[:3]))
        return Shares(*map(float, of_peak), *map(float, np.exp(values[3:])))

    def distance(values: NDArray[np.float64]) -> float:
        shares = shares_of(values)
        apart = np.mean([abs(np.log(ratio(time, shares))) for time in times])
        unusual = np.log(np.array(astuple(shares)[:3]) / USUAL)
        return float(apart + WEIGHT * np.square(unusual).sum())

    generator = np.random.default_rng(0)
    guess = np.array([*np.log(USUAL / (1 - USUAL)), *np.log([2e-6, 6e-6, 2e-4])])
    tries = [
        minimize(
            distance,
            guess + generator.normal(0.0, 0.5, 6),
            method="Nelder-Mead",
            options={"maxiter": 6000, "maxfev": 6000},
        )
        for _ in range(STARTS)
    ]
    return shares_of(min(tries, key=lambda found: found.fun).x)


@click.command()
def main() -> None:
    """Fit, and print the shares and every ratio."""
    times = read_times(DOCUMENT.read_text(encoding="utf-8"))
    if not times:
        sys.exit(f"error: {DOCUMENT.name} has no times in half precision: run make bench-gpu")
    shares = fit(times)
    table = Table(title="reckoned over measured")
    for heading in ("", "measured ms", "fitted now", "in use"):
        table.add_column(heading, justify="right" if heading else "left")
    for time in times:
        ours = (f"{ratio(time, each):.2f}" for each in (shares, FITTED))
        table.add_row(time.name, f"{time.ms:.2f}", *ours)
    console.out.print(table)
    console.out.print("fitted now: " + ", ".join(f"{value:.3g}" for value in astuple(shares)))
    tell("recordings, in use", FITTED, [time for time in times if time.recorded])
    for name in SHAPES:
        others = [time for time in times if not time.name.startswith(name)]
        mine = [time for time in times if time.name.startswith(name)]
        if others and mine:
            tell(f"{name}, fitted to the others", fit(others), mine)


def tell(what: str, shares: Shares, times: list[Time]) -> None:
    """Print how far reckoned times are from those that were measured."""
    ratios = [ratio(time, shares) for time in times]
    apart = np.median(np.abs(np.array(ratios) - 1))
    console.out.print(f"{what}: {apart:.1%} apart, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
