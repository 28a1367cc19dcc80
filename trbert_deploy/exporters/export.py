"""Checkpoint to bundle: trace, share weights, check against PyTorch, put in place."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    DEFAULT_DIRECTORY,
    DEQUANTIZED,
    INT8,
    MANIFEST,
    SAMPLES,
    TOKENIZER,
    UNMASKED,
    Manifest,
    write_manifest,
)
from trbert_deploy.errors import BundleError, ParityError
from trbert_deploy.exporters.checks.parity import (
    ChainParity,
    GraphParity,
    check_shapes,
    compare_chains,
    compare_graphs,
    row_maker,
)
from trbert_deploy.exporters.onnx.trace import TRACED_LENGTH, export_graphs
from trbert_deploy.files import sha256, staged_directory, write_json_lines
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.modeling.checkpoints.tokenizer import tokenizer_directory
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.modeling.torch_backend import TorchBackend
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.autotune.fastest_backend import least_agreement
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.registry import task_of

LEAST_INT8_AGREEMENT = 0.97
NUM_INT8_ROWS = 16
_INT8_LENGTHS = (64, 256, 512)


@dataclass(frozen=True)
class ExportReport:
    """What an export made.

    Attributes:
        path: the bundle.
        graphs: parity of every graph.
        chain: parity of the whole chain.
        int8_agreement: of the chain with 8-bit weights with float32 (see ``least_agreement``).
        source: the checkpoint.
        is_dense: whether it had no cuts, so that the bundle is the dense model alone.
    """

    path: Path
    graphs: tuple[GraphParity, ...]
    chain: ChainParity
    int8_agreement: float | None = None
    source: Path = Path()
    is_dense: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.path),
            "dense": self.is_dense,
            "parity": self.parity_json(),
        }

    def parity_json(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return {
            "graphs": [parity.to_json() for parity in self.graphs],
            "chain": self.chain.to_json(),
            "int8_agreement": self.int8_agreement,
        }


def export_bundle(
    checkpoint_path: Path,
    output: Path = Path(DEFAULT_DIRECTORY),
    *,
    samples: bool = True,
    round_to: int | None = None,
    int8: bool = False,
    least_int8_agreement: float = LEAST_INT8_AGREEMENT,
    progress: Progress = no_progress,
) -> ExportReport:
    """Export a checkpoint as a bundle; an older bundle at ``output`` is replaced at the very end.

    Args:
        checkpoint_path: directory that ``trbert-deploy train`` wrote, or of another fine-tuned
            model, which becomes a bundle of the dense model alone.
        output: bundle directory to make.
        samples: put the checkpoint's sample texts into the bundle, for benchmarks.
        round_to: multiple that survivors are rounded up to; the checkpoint's where None.
        int8: add graphs with 8-bit weights, for ONNX Runtime and OpenVINO on CPUs. ONNX Runtime
            checks both kinds; it does not round activations in the one that is for OpenVINO.
        least_int8_agreement: share of the rows that must get the label, and of the tokens that
            must meet the fate, that they do in float32.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        BundleError: ``output`` is something else than a bundle.
        ParityError: a graph, or the chain, does not reproduce PyTorch, or 8-bit weights agree too
            little; ``output`` is untouched.
    """
    if output.exists() and not (output / MANIFEST).is_file():
        raise BundleError(
            f"{output} exists and is not a bundle: choose another --output, or remove it"
        )
    checkpoint = load_checkpoint(checkpoint_path)
    model = checkpoint.model
    model.set_reduction(model.reduction.at(OperatingPoint(round_to=round_to)))
    texts = checkpoint.samples
    with staged_directory(output) as staging:
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer_dir = tokenizer_directory(str(checkpoint.tokenizer_dir), Path(scratch))
            shutil.copyfile(tokenizer_dir / TOKENIZER_FILE, staging / TOKENIZER)
        steps = 2 * (len(model.segments) + 1 if model.reduction.cuts else 1) + 1
        graphs = []
        for graph in export_graphs(model, staging, int8):
            graphs.append(graph)
            progress(f"trace {graph.name}", len(graphs), steps)
        if samples and texts:
            write_json_lines(staging / SAMPLES, [{"text": text} for text in texts])
        manifest = Manifest(
            encoder=model.spec,
            reduction=model.reduction,
            max_length=checkpoint.max_length,
            graphs=tuple(graphs),
            files={path.name: sha256(path) for path in sorted(staging.iterdir())},
            training=checkpoint.training,
            made_by={
                name: version(name) for name in ("trbert-deploy", "torch", "transformers", "onnx")
            },
        )
        reference = TorchBackend(model)
        bundle = Bundle.of(staging, manifest, verify=False)
        candidate = OnnxRuntimeBackend(bundle, BackendOptions())
        standard = OnnxRuntimeBackend(bundle, BackendOptions(), without_mask=UNMASKED)
        rows_of = row_maker(
            staging / TOKENIZER, checkpoint.max_length, model.spec.vocab_size, texts
        )
        shapes = check_shapes(TRACED_LENGTH, checkpoint.max_length)
        parities = []
        for parity in compare_graphs(
            reference,
            candidate,
            model.spec,
            model.reduction,
            rows_of,
            shapes,
            without_padding=[standard],
        ):
            parities.append(parity)
            progress(f"check {parity.graph}", len(graphs) + len(parities), steps)
        ours = Chain(candidate, model.reduction, model.spec.num_layers)
        task = task_of(model.spec)
        chain = compare_chains(
            task,
            Chain(reference, model.reduction, model.spec.num_layers),
            ours,
            [row for batch, length in shapes for row in rows_of(length, batch)],
        )
        agreement = None
        if int8:
            lengths = sorted({min(length, checkpoint.max_length) for length in _INT8_LENGTHS})
            rows = [row for length in lengths for row in rows_of(length, NUM_INT8_ROWS)]
            expected = ours.run(rows)
            agreements = []
            for variant in (INT8, DEQUANTIZED):
                eight = OnnxRuntimeBackend(bundle, BackendOptions(), without_mask=variant)
                rounded = Chain(eight, model.reduction, model.spec.num_layers)
                agreements.append(least_agreement(task, rows, expected, rounded.run(rows)))
            agreement = min(agreements)
            _require_agreement(agreement, least_int8_agreement)
        progress("check chain", steps, steps)
        report = ExportReport(
            output,
            tuple(parities),
            chain,
            agreement,
            source=checkpoint_path,
            is_dense=not model.reduction.cuts,
        )
        write_manifest(staging, replace(manifest, parity=report.parity_json()))
    return report


def _require_agreement(agreement: float, least: float) -> None:
    if agreement < least:
        raise ParityError(
            f"with 8-bit weights only {agreement:.1%} of the answers, or of the tokens' fates, are "
            f"those of float32: expected at least {least:.0%}; export without --int8, or with "
            "--force-int8 if evaluate finds the quality good enough"
        )
