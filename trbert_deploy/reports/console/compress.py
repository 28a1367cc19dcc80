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
    dense = quality["dense"]
    # Where texts leave early, beside what dropped tokens alone would save.
    found = [each for each in (summary.get("to_the_end"), quality) if each is not None]
    headings = ["reduced"] if len(found) == 1 else ["tokens dropped", "and exits"]
    table = Table(title=f"{quality['rows']:,} texts that were held out")
    for heading in ("", "the model as it came", *headings):
        table.add_column(heading, justify="right" if heading else "left")
    for measure in dense:
        if measure != "seconds":
            cells = [measure_row(measure, dense, each["reduced"]) for each in found]
            table.add_row(*cells[0][:2], *(own for _, _, own in cells))
    if quality["measure"] != "agreement":
        table.add_row("answers that agree", "", *(f"{each['agreement']:.2%}" for each in found))
    table.add_row(
        "tokens of a text, cut by cut", f"{quality['tokens_per_row']:.0f}", *map(_tokens, found)
    )
    if len(found) > 1:
        left = " / ".join(f"{share:.0%}" for share in quality["left_share"])
        table.add_row("texts that leave, cut by cut", "", "", left)
    table.add_row(
        "operations (FLOPs)", "1x", *(f"{each['flops_speedup']:.2f}x fewer" for each in found)
    )
    if len(found) > 1:
        table.add_row(
            "time of these texts",
            "1x",
            *(f"{each['measured_speedup']:.2f}x less" for each in found),
        )
    (backend,) = summary["bench"]["backends"]
    for point in backend["points"]:
        figure = "mean_ms" if point.get("left") else "p50_ms"
        table.add_row(
            f"time for {point['length']} tokens",
            f"{point['dense'][figure]:.1f} ms",
            *[""] * (len(found) - 1),
            f"{point['reduced'][figure]:.1f} ms ({point['measured_speedup']:.2f}x)",
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


def _tokens(quality: dict[str, Any]) -> str:
    """Tokens before the first cut, and behind each."""
    shares = [1.0, *quality["kept_share"]]
    return " -> ".join(f"{quality['tokens_per_row'] * share:.0f}" for share in shares)
