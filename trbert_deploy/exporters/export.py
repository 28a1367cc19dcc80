"""Checkpoint to bundle: trace, share weights, check against PyTorch, put in place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trbert_deploy.batching import NO_PADDING
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    CALIBRATED,
    DEFAULT_DIRECTORY,
    DEQUANTIZED,
    INT8,
    LEXICON,
    MANIFEST,
    SAMPLES,
    TOKENIZER,
    UNMASKED,
    Manifest,
    require_layers,
    write_manifest,
)
from trbert_deploy.bundle.samples import write_samples
from trbert_deploy.errors import BundleError, ParityError
from trbert_deploy.exporters.calibrated_graphs import add_calibrated, remove_calibrated
from trbert_deploy.exporters.calibration import judging_rows
from trbert_deploy.exporters.checks.half_precision import PrecisionParity, compare_halves
from trbert_deploy.exporters.checks.limits import LIMITS, Limits
from trbert_deploy.exporters.checks.parity import (
    ChainParity,
    GraphParity,
    check_shapes,
    compare_chains,
    compare_graphs,
)
from trbert_deploy.exporters.one_graph import (
    OneGraph,
    add_one_graph,
    require_possible,
    whole_rows,
)
from trbert_deploy.exporters.onnx.trace import TRACED_LENGTH, export_graphs
from trbert_deploy.files import sha256, staged_directory
from trbert_deploy.lexicon.entries import write_entries
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.modeling.checkpoints.tokenizer import tokenizer_directory
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.modeling.torch_backend import TorchBackend
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.samples import RowMaker, row_maker
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.runtime.tokenizing import tokenizer_of
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.pairs import TRUNCATION
from trbert_deploy.tasks.registry import answering, task_of
from trbert_deploy.version import __version__

NUM_INT8_ROWS = 16
_INT8_LENGTHS = (64, 256, 512)


@dataclass(frozen=True)
class ExportReport:
    """What an export made.

    Attributes:
        path: the bundle.
        graphs: parity of every graph.
        chain: parity of the whole chain.
        one_graph: the whole chain in one graph, if it was asked for.
        int8: how far the chains with 8-bit weights, if there are any, are from float32: variant ->
            parity.
        not_calibrated: why none of them has calibrated ranges; None where one has, or
            where there are none.
        fp16: how far half precision, if there is any, is from float32, as ``compare_halves`` says.
        source: the checkpoint.
        is_dense: whether it had no cuts, so that the bundle is the dense model alone.
        random_rows: all this was checked on random tokens, for want of sample texts.
        has_samples: whether the bundle has sample texts, to measure with.
    """

    path: Path
    graphs: tuple[GraphParity, ...]
    chain: ChainParity
    one_graph: OneGraph | None = None
    int8: Mapping[str, ChainParity] = field(default_factory=dict)
    not_calibrated: str | None = None
    fp16: Mapping[str, PrecisionParity] = field(default_factory=dict)
    source: Path = Path()
    is_dense: bool = False
    random_rows: bool = False
    has_samples: bool = True

    @property
    def int8_agreement(self) -> float | None:
        """The least share of answers, or of tokens' fates, that 8-bit weights leave as it is."""
        return _least_agreement(self.int8.values())

    @property
    def fp16_agreement(self) -> float | None:
        """The same of half precision."""
        return _least_agreement(parity.chain for parity in self.fp16.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.path),
            "dense": self.is_dense,
            "samples": self.has_samples,
            "parity": self.parity_json(),
        }

    def parity_json(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return {
            "graphs": [parity.to_json() for parity in self.graphs],
            "chain": self.chain.to_json(),
            "one_graph": self.one_graph and self.one_graph.to_json(),
            "int8": {variant: parity.to_json() for variant, parity in self.int8.items()},
            "int8_agreement": self.int8_agreement,
            "fp16": {how: parity.to_json() for how, parity in self.fp16.items()},
            "random_rows": self.random_rows,
        }


def _least_agreement(parities: Iterable[ChainParity]) -> float | None:
    shares = [min(parity.answer_agreement, parity.survivor_agreement) for parity in parities]
    return min(shares, default=None)


def export_bundle(
    checkpoint_path: Path,
    output: Path = Path(DEFAULT_DIRECTORY),
    *,
    samples: bool = True,
    threshold: float | None = None,
    round_to: int | None = None,
    exit_confidence: float | None = None,
    truncation: str | None = None,
    task: str | None = None,
    int8: bool = False,
    int8_limits: Limits = LIMITS["int8"],
    fp16: bool = False,
    fused: bool = False,
    states_after: Sequence[int] = (),
    progress: Progress = no_progress,
) -> ExportReport:
    """Export a checkpoint as a bundle; an older bundle at ``output`` is replaced at the very end.

    Args:
        checkpoint_path: directory that ``trbert-deploy train`` wrote, or of another fine-tuned
            model, which becomes a bundle of the dense model alone.
        output: bundle directory to make.
        samples: put the checkpoint's sample texts into the bundle, for benchmarks.
        threshold: keep probability from which tokens survive; the checkpoint's rules where None.
        round_to: multiple that survivors are rounded up to; the checkpoint's where None.
        exit_confidence: how sure an exit must be for a row to leave; the checkpoint's where None.
        truncation: which text of a pair is cut, one of ``TRUNCATIONS``; as the checkpoint says
            where None.
        task: that the checkpoint is asked for, as ``load_checkpoint`` takes it.
        int8: add graphs with 8-bit weights, for ONNX Runtime and OpenVINO on CPUs. ONNX Runtime
            checks all of them; it does not round activations in the one for OpenVINO that has no
            ranges of them. Those with ranges are added where sample texts are there to find them
            on, and where what comes of it is as near to float32 as the others have to be.
        int8_limits: how far from float32 they may be.
        fp16: add graphs in half precision, for ONNX Runtime on GPUs. ONNX Runtime checks them as
            they are, and with every rounding of a GPU (``compare_halves``).
        fused: add the graph of the whole chain, for runtimes that have none of this package.
        states_after: layers behind each of which a graph of states is added, that ``align`` reads;
            0 for the embeddings.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        BundleError: ``output`` is something else than a bundle.
        ConfigError: ``truncation`` is unknown, or the task takes no pairs; or the checkpoint has a
            head for another task; or the chain cannot be one graph; or the encoder has no such
            layer; or rows are to leave where there are no exits.
        ParityError: a graph, or the chain, does not reproduce PyTorch, or 8-bit weights or half
            precision are too far from float32; ``output`` is untouched.
        EngineError: a weight does not fit into half precision.
    """
    if output.exists() and not (output / MANIFEST).is_file():
        raise BundleError(
            f"{output} exists and is not a bundle: choose another --output, or remove it"
        )
    progress(f"read {checkpoint_path.name or checkpoint_path}", 0, None)
    checkpoint = load_checkpoint(checkpoint_path, task)
    model = checkpoint.model
    if truncation is not None:
        model.spec = answering(model.spec, {TRUNCATION: truncation})
    point = OperatingPoint(threshold, round_to=round_to, exit_confidence=exit_confidence)
    model.set_reduction(model.reduction.at(point))
    layers = sorted({*states_after})
    require_layers(layers, model.spec.num_layers)
    texts = checkpoint.samples
    asked = task_of(model.spec)
    if fused:
        takes_matches = bool(asked.lexicon_tags)
        require_possible(model.reduction, asked.outputs, bool(texts), takes_matches)
    with staged_directory(output) as staging:
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer_dir = tokenizer_directory(str(checkpoint.tokenizer_dir), Path(scratch))
            shutil.copyfile(tokenizer_dir / TOKENIZER_FILE, staging / TOKENIZER)
        parts = (len(model.segments) + 1 if model.reduction.cuts else 1) + len(layers)
        steps = 2 * parts + 1
        steps += fp16 + fused + int8
        graphs = []
        progress("trace graphs", 0, steps)
        for graph in export_graphs(model, staging, int8, fp16, layers):
            graphs.append(graph)
            progress("trace graphs", len(graphs), steps)
        if samples and texts:
            write_samples(staging / SAMPLES, texts)
        if checkpoint.lexicon:
            write_entries(staging / LEXICON, checkpoint.lexicon)
        manifest = Manifest(
            encoder=model.spec,
            reduction=model.reduction,
            max_length=checkpoint.max_length,
            graphs=tuple(graphs[: len(graphs) - len(layers)]),
            states=tuple(graphs[len(graphs) - len(layers) :]),
            states_after=tuple(layers),
            files={path.name: sha256(path) for path in sorted(staging.iterdir())},
            training=checkpoint.training,
            made_by={"trbert-deploy": __version__}
            | {name: version(name) for name in ("torch", "transformers", "onnx")},
        )
        reference = TorchBackend(model)
        bundle = Bundle.of(staging, manifest, verify=False)
        candidate = OnnxRuntimeBackend(bundle, BackendOptions())
        standard = OnnxRuntimeBackend(bundle, BackendOptions(), without_mask=UNMASKED)
        rows_of = row_maker(tokenizer_of(bundle), model.spec, texts)
        shapes = check_shapes(TRACED_LENGTH, checkpoint.max_length)
        parities = []
        progress("check graphs", len(graphs), steps)
        for parity in compare_graphs(
            reference,
            candidate,
            model.spec,
            model.reduction,
            rows_of,
            shapes,
            without_padding=[standard],
            states_after=layers,
        ):
            parities.append(parity)
            progress("check graphs", len(graphs) + len(parities), steps)
        progress("check chain", 2 * len(graphs), steps)
        chain_on = partial(
            Chain,
            reduction=model.reduction,
            num_layers=model.spec.num_layers,
            task=asked,
        )
        ours = chain_on(candidate)
        checked = [row for batch, length in shapes for row in rows_of(length, batch)]
        chain = compare_chains(asked, chain_on(reference), ours, checked)
        halved: dict[str, PrecisionParity] = {}
        if fp16:
            progress("check half precision", steps - int8 - fused - 1, steps)
            halved = compare_halves(bundle, rows_of, not texts)
        one_graph = None
        if fused:
            progress("put the chain into one graph", steps - 1 - int8, steps)
            # No row leaves one graph early.
            whole = ours.to_the_end()
            one_graph = add_one_graph(bundle, whole, [*checked, *whole_rows(bundle, texts)])
            written = map(one_graph.graph.file_of, one_graph.graph.variants)
            manifest = replace(
                manifest,
                chain=one_graph.graph,
                capacities=one_graph.capacities,
                files={**manifest.files, **{name: sha256(staging / name) for name in written}},
            )
        rounded: dict[str, ChainParity] = {}
        not_calibrated: str | None = None
        if int8:
            progress("check 8-bit weights", steps - 1, steps)
            lengths = sorted({min(length, checkpoint.max_length) for length in _INT8_LENGTHS})
            compare = partial(
                compare_chains, asked, ours, limits=int8_limits, reference_name="float32"
            )

            def in_8_bits(made: Bundle, variant: str) -> Chain:
                eight = OnnxRuntimeBackend(made, BackendOptions(), without_mask=variant)
                return chain_on(eight, padding=NO_PADDING)  # padded rows would run in float32

            def rows_made(rows_of: RowMaker) -> list[TokenRow]:
                return [row for length in lengths for row in rows_of(length, NUM_INT8_ROWS)]

            rows = rows_made(rows_of)
            for variant in (INT8, DEQUANTIZED):
                rounded[variant] = compare(
                    in_8_bits(bundle, variant),
                    rows,
                    name="chain with 8-bit weights",
                    advice="export without --int8, or with --force-int8 if evaluate finds the "
                    "quality good enough",
                )
            not_calibrated = "there are no sample texts to find them on"
            if texts:
                progress("calibrate 8-bit activations", steps - 1, steps)
                calibrated = add_calibrated(replace(bundle, manifest=manifest), texts)
                rows = rows_made(judging_rows(bundle, texts))
                try:
                    rounded[CALIBRATED] = compare(
                        in_8_bits(calibrated, CALIBRATED), rows, name="chain with calibrated ranges"
                    )
                    manifest, not_calibrated = calibrated.manifest, None
                except ParityError as problem:
                    remove_calibrated(calibrated)
                    not_calibrated = str(problem)
        progress("write manifest", steps, steps)
        report = ExportReport(
            output,
            tuple(parities),
            chain,
            one_graph,
            rounded,
            not_calibrated,
            halved,
            source=checkpoint_path,
            is_dense=not model.reduction.cuts,
            random_rows=not texts,
            has_samples=samples and bool(texts),
        )
        write_manifest(staging, replace(manifest, parity=report.parity_json()))
    return report
