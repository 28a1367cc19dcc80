"""The table at the end of the quickstart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(summary: dict[str, Any], directory: Path, console: Console) -> None:
    """Print what a newcomer wants to know of a finished quickstart, and what to try next."""
    quality = summary["quality"]
    table = Table(title="quickstart: which library does this page document?")
    table.add_column("")
    table.add_column("teacher", justify="right")
    table.add_column("reduced", justify="right")
    table.add_row(
        f"accuracy on {quality['rows']} test pages",
        f"{quality['dense']['accuracy']:.1%}",
        f"{quality['reduced']['accuracy']:.1%}",
    )
    tokens = quality["tokens_per_row"]
    kept = " -> ".join(f"{tokens * share:.0f}" for share in [1.0, *quality["kept_share"]])
    table.add_row("tokens of a page, cut by cut", f"{tokens:.0f}", kept)
    table.add_row("computation (FLOPs) saved", "1x", f"{quality['flops_speedup']:.2f}x")
    for point in summary["bench"]:
        table.add_row(
            f"time for {point['length']} tokens",
            f"{point['dense_ms']:.0f} ms",
            f"{point['reduced_ms']:.0f} ms ({point['measured_speedup']:.2f}x; "
            f"FLOPs {point['flops_speedup']:.2f}x)",
        )
    console.print(table)
    engines = summary["engines"]
    if isinstance(engines, str):
        console.print(f"TensorRT engines: none. {engines}", soft_wrap=True)
    else:
        names = ", ".join(engines["mebibytes"])
        console.print(f"TensorRT engines built ({engines['set']}): {names}", soft_wrap=True)
    console.print(f"It took {summary['seconds'] / 60:.1f} minutes. Try next:")
    bundle = directory / "bundle"
    for command in (
        f'predict {bundle} --kept --text "torch.nn.Linear applies an affine transformation"',
        f"bench {bundle} --lengths 128,512,2048 --batch 1,8",
        f"train --model {directory / 'ckpt'} --train FILE.jsonl --output my-ckpt",
    ):
        console.print(f"  trbert-deploy {command}", soft_wrap=True)
