"""The table at the end of an export."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from trbert_deploy.exporters.export import ExportReport


def print_export(report: ExportReport, console: Console) -> None:
    """Print how far every graph, and the chain, is from PyTorch."""
    table = Table(title="largest difference from PyTorch")
    for heading in ("graph", "hidden", "keep logit", "logits", "same survivors", "tolerance"):
        table.add_column(heading, justify="left" if heading == "graph" else "right")
    for parity in report.graphs:
        found = parity.max_difference
        table.add_row(
            parity.graph,
            *(
                f"{found[name]:.1e}" if name in found else "-"
                for name in ("hidden_out", "keep_logit", "logits")
            ),
            f"{parity.survivor_agreement:.2%}" if "keep_logit" in found else "-",
            f"{parity.tolerance:.0e}",
        )
    chain = report.chain
    table.add_row(
        "chain",
        "-",
        "-",
        f"{chain.max_output_difference:.1e}",
        f"{chain.survivor_agreement:.2%}",
        f"{chain.tolerance:.0e}",
    )
    console.print(table)
    shapes = ", ".join(f"{batch}x{length}" for batch, length in report.graphs[0].shapes)
    console.print(f"checked at batch x length: {shapes}")
    if report.int8_agreement is not None:
        console.print(
            f"8-bit weights: {report.int8_agreement:.1%} of the labels and of the tokens' fates, "
            "at least, are those of float32"
        )
    console.print(f"bundle: {report.path}   next: trbert-deploy build-engine {report.path} --fp16")
