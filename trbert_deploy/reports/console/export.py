"""The table at the end of an export."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from trbert_deploy.bundle.manifest import HIDDEN_OUT, KEEP_LOGIT
from trbert_deploy.exporters.export import ExportReport


def print_export(report: ExportReport, console: Console) -> None:
    """Print how far every graph, and the chain, is from PyTorch."""
    table = Table(title="largest difference from PyTorch")
    for heading in ("graph", "hidden", "keep logit", "outputs", "same survivors", "tolerance"):
        first = heading == "graph"
        table.add_column(heading, justify="left" if first else "right", no_wrap=first)
    states = (HIDDEN_OUT, KEEP_LOGIT)
    for parity in report.graphs:
        found = parity.max_difference
        table.add_row(
            parity.graph,
            *(_shown(found, {name}) for name in states),
            _shown(found, set(found) - set(states)),
            f"{parity.survivor_agreement:.2%}" if KEEP_LOGIT in found else "-",
            f"{parity.tolerance:.0e}",
        )
    chain = report.chain
    table.add_row(
        "chain",
        "-",
        "-" if report.is_dense else f"{chain.keep_logit_difference:.1e}",
        f"{chain.max_output_difference:.1e}",
        f"{chain.survivor_agreement:.2%}",
        f"{chain.tolerance:.0e}",
    )
    if report.one_graph is not None:
        for variant, whole in report.one_graph.parity.items():
            table.add_row(
                f"one graph {variant}",
                "-",
                "-",
                f"{whole.max_output_difference:.1e}",
                f"{whole.survivor_agreement:.2%}",
                f"{whole.tolerance:.0e}",
            )
    console.print(table)
    shapes = ", ".join(f"{batch}x{length}" for batch, length in report.graphs[0].shapes)
    console.print(f"checked at batch x length: {shapes}")
    if report.int8_agreement is not None:
        console.print(
            f"8-bit weights: {report.int8_agreement:.1%} of the answers and of the tokens' fates, "
            "at least, are those of float32"
        )
    if report.not_calibrated is not None:
        console.print(
            "OpenVINO finds the ranges of 8-bit activations as it runs, which takes longer than "
            f"calibrated ones: {report.not_calibrated}"
        )
    if report.fp16_agreement is not None:
        console.print(
            f"half precision: {report.fp16_agreement:.1%} of the answers and of the tokens' fates, "
            "at least, are those of float32"
        )
    if report.random_rows:
        console.print(
            f"checked on random tokens: {report.source} has no sample texts, as training keeps them"
        )
    if not report.has_samples and not report.is_dense:
        console.print(
            "the bundle has no sample texts: what is measured or checked with it later "
            "(--latency-budget, --dense-below auto, --backend auto, build-engine) takes random "
            "tokens, of which its policies may keep more or fewer than of text"
        )
    if report.is_dense:
        console.print(
            f"{report.source} has no policies: the bundle is the dense model, served as it is; to "
            f"make it drop tokens: trbert-deploy train --model {report.source} --train TEXTS "
            "--output CKPT"
        )
    console.print(f"bundle: {report.path}   next: trbert-deploy build-engine {report.path} --fp16")


def _shown(found: Mapping[str, float], names: set[str]) -> str:
    """The largest difference of some of a graph's outputs, if it has any of them."""
    values = [found[name] for name in names if name in found]
    return f"{max(values):.1e}" if values else "-"
