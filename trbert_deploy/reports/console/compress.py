"""The table at the end of a compression."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from trbert_deploy.reports.console.bench import measure_row


def print_compress(summary: dict[str, Any], console: Console) -> None:
    """Print what a compression came to, and what to do next."""
    bundle = summary["bundle"]
    if "quality" not in summary:
        console.print(
            f"dense bundle: {bundle}, since {summary['payoff']['reason']}", soft_wrap=True
        )
        return
    quality = summary["quality"]
    dense, reduced = quality["dense"], quality["reduced"]
    table = Table(title=f"{quality['rows']:,} texts that were held out")
    for heading in ("", "the model as it came", "reduced"):
        table.add_column(heading, justify="right" if heading else "left")
    for measure in dense:
        if measure != "seconds":
            table.add_row(*measure_row(measure, dense, reduced))
    if quality["measure"] != "agreement":
        table.add_row("answers that agree", "", f"{quality['agreement']:.2%}")
    tokens = quality["tokens_per_row"]
    kept = " -> ".join(f"{tokens * share:.0f}" for share in [1.0, *quality["kept_share"]])
    table.add_row("tokens of a text, cut by cut", f"{tokens:.0f}", kept)
    table.add_row("operations (FLOPs)", "1x", f"{quality['flops_speedup']:.2f}x fewer")
    (backend,) = summary["bench"]["backends"]
    for point in backend["points"]:
        table.add_row(
            f"time for {point['length']} tokens",
            f"{point['dense']['p50_ms']:.1f} ms",
            f"{point['reduced']['p50_ms']:.1f} ms ({point['measured_speedup']:.2f}x)",
        )
    console.print(table)
    low, high = quality["interval"]
    console.print(
        f"{quality['measure']} changes by {quality['score_change']:+.2f} points "
        f"(95 % interval {low:+.2f} to {high:+.2f})"
    )
    for point in backend["points"]:
        if point["measured_speedup"] < 1.0:
            console.print(f"The dense model is faster at {point['length']} tokens.")
    if summary["missed"] is None:
        console.print(
            f"bundle: {bundle}   next: trbert-deploy predict {bundle} --text ...", soft_wrap=True
        )
    else:
        console.print(
            f"{summary['missed']}; the bundle lies in {bundle} and was not put in place",
            soft_wrap=True,
        )
