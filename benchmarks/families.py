"""What dropping tokens saves in each family: measured time over FLOPs, on random models.

    python benchmarks/families.py --lengths 512,2048 --markdown families.md

Every model has the common base size of its family (12 layers of 768; ModernBERT-base 22 layers)
and random weights, since time depends on shapes alone. Each cut keeps the same share of every text.
The dense model has the same weights and runs in turns with the chain (as in ``trbert-deploy
bench``). Positions are extended where a family has fewer than the longest row. Answers mean
nothing.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.table import Table
from transformers import AutoConfig

from trbert_deploy import console, load
from trbert_deploy.bench.timing import BenchPoint, Rounds, measure_point
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import TOKENIZER, Manifest, write_manifest
from trbert_deploy.config import ReductionConfig
from trbert_deploy.demo.quickstart import packaged_encoder
from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.exporters.onnx.trace import export_graphs
from trbert_deploy.files import sha256, write_json, write_text
from trbert_deploy.machine import describe_machine
from trbert_deploy.modeling.families.registry import FAMILIES, family_of
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.selection.rules import SelectionRule

#: Shares of the tokens that reach each cut and survive it.
KEPT = (0.5, 0.3)

_BASE = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072,
}  # fmt: skip
#: ``model_type`` -> what its common base size has besides the configuration's defaults.
BASE_SIZES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1},
    "xlm-roberta": {"vocab_size": 50000, "max_position_embeddings": 514, "type_vocab_size": 1},
    "camembert": {"vocab_size": 32005, "max_position_embeddings": 514, "type_vocab_size": 1},
    "distilbert": {"n_layers": 6},
    "electra": {"embedding_size": 768, **_BASE},
    "mpnet": {},
    "modernbert": {},
    "deberta-v2": {
        **_BASE, "vocab_size": 50000, "position_buckets": 256, "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm",
        "position_biased_input": False, "type_vocab_size": 0, "max_position_embeddings": 512,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One family at one length on one backend."""

    family: str
    backend: str
    point: BenchPoint

    def to_json(self) -> dict[str, Any]:
        return {"family": self.family, "backend": self.backend, **self.point.to_json()}


def make_bundle(model_type: str, length: int, directory: Path) -> Bundle:
    """A bundle of a random model of a family's base size, not checked against PyTorch."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **BASE_SIZES[model_type])
    spec = family_of(model_type, "the benchmark").spec(config, "text-classification", ("no", "yes"))
    reduction = ReductionConfig.default_for(spec)
    rules = tuple(SelectionRule("ratio", share) for share in KEPT)
    model = ReducedModel(spec, reduction.with_rules(rules)).eval()
    if length > spec.max_positions:
        model.extend_positions(length)
    (directory / TOKENIZER).write_bytes((packaged_encoder() / TOKENIZER).read_bytes())
    graphs = tuple(export_graphs(model, directory))
    files = {path.name: sha256(path) for path in sorted(directory.iterdir())}
    manifest = Manifest(model.spec, model.reduction, model.spec.max_positions, graphs, files)
    write_manifest(directory, manifest)
    return Bundle.open(directory, verify=False)


def measure(
    bundle: Bundle, backend: str, lengths: list[int], rounds: Rounds, threads: int
) -> list[BenchPoint]:
    """Time chain and dense model in turns, on random tokens."""
    pipeline = load(bundle.path, backend, threads=threads, precision="fp32", verify=False)
    generator = np.random.default_rng(0)
    points = []
    for length in lengths:
        ids = generator.integers(1000, bundle.manifest.encoder.vocab_size, (4, length))
        rows = [TokenRow(row, np.zeros(length, np.int64)) for row in ids]
        points.append(measure_point(pipeline, rows, 1, rounds))
    return points


def table_of(rows: list[Row]) -> list[list[str]]:
    """Cells, the heading first."""
    cells = [["family", "backend", "tokens", "dense ms", "reduced ms", "measured", "FLOPs",
              "measured / FLOPs", "of BERT's"]]  # fmt: skip
    ratios = {(row.backend, row.point.length): row.point.efficiency
              for row in rows if row.family == "bert"}  # fmt: skip
    for row in rows:
        point = row.point
        bert = ratios.get((row.backend, point.length))
        cells.append([
            row.family, row.backend, str(point.length),
            f"{point.dense.p50_ms:.0f}", f"{point.reduced.p50_ms:.0f}",
            f"{point.measured_speedup:.2f}x", f"{point.flops_speedup:.2f}x",
            f"{point.efficiency:.2f}", "" if bert is None else f"{point.efficiency / bert:.2f}",
        ])  # fmt: skip
    return cells


@click.command()
@click.option("--families", help="Some of them, such as bert,mpnet [default: all].")
@click.option("--lengths", default="512,2048", show_default=True)
@click.option("--backends", default="onnxruntime", show_default=True)
@click.option("--threads", default=0, help="Threads of one graph [default: the backend chooses].")
@click.option("--rounds", default=5, show_default=True, help="Measured repetitions of a point.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table to this file.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures.")
def main(
    families: str | None, lengths: str, backends: str, threads: int, rounds: int,
    markdown: Path | None, json_path: Path | None,
) -> None:  # fmt: skip
    """Measure what dropping tokens saves in each family."""
    wanted = list(BASE_SIZES) if families is None else families.split(",")
    sizes = [int(length) for length in lengths.split(",")]
    rows: list[Row] = []
    try:
        for family in wanted:
            if family not in BASE_SIZES or family not in FAMILIES:
                raise ConfigError(
                    f"unknown family {family}: expected some of {','.join(BASE_SIZES)}"
                )
            with tempfile.TemporaryDirectory() as scratch:
                bundle = make_bundle(family, max(sizes), Path(scratch))
                for backend in backends.split(","):
                    for point in measure(bundle, backend, sizes, Rounds.exactly(rounds), threads):
                        rows.append(Row(family, backend, point))
                        console.out.print("  ".join(table_of(rows)[-1]))
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    heading, *cells = table_of(rows)
    shown = Table(*heading, title=str(describe_machine()["processor"]))
    for line in cells:
        shown.add_row(*line)
    console.out.print(shown)
    if markdown is not None:
        lines = [
            "| " + " | ".join(line) + " |" for line in (heading, ["---"] * len(heading), *cells)
        ]
        write_text(markdown, "\n".join(lines) + "\n")
    if json_path is not None:
        figures = {"machine": describe_machine(), "rows": [row.to_json() for row in rows]}
        write_json(json_path, figures)


if __name__ == "__main__":
    main()
