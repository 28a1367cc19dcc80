"""How exactly each family is computed: against transformers, through the export, in half precision.

    python benchmarks/family_parity.py --markdown parity.md

Seeded random models of four layers (ModernBERT six), 256 wide, are compared with transformers'
eager attention on whole rows of 1 to 512 tokens, padded and not; then exported with cuts inside
layer 0 and half-way, checked against PyTorch by the export's own gates, rounded to half precision
and to 8 bits, and built as TensorRT for RTX engines (built, not run).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from trbert_deploy import console
from trbert_deploy.config import ReductionConfig
from trbert_deploy.demo.quickstart import packaged_encoder
from trbert_deploy.errors import MissingDependencyError, TrbertError
from trbert_deploy.exporters.checks.limits import NO_LIMITS
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.exporters.tensorrt.engine_build import EngineOptions, build_engines
from trbert_deploy.files import write_text
from trbert_deploy.modeling.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trbert_deploy.modeling.layouts.padded import PaddedLayout
from trbert_deploy.modeling.model import ReducedModel

_COMMON: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 1024, "max_position_embeddings": 514,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _COMMON,
    "roberta": {**_COMMON, "type_vocab_size": 1},
    "xlm-roberta": {**_COMMON, "type_vocab_size": 1},
    "camembert": {**_COMMON, "type_vocab_size": 1},
    "distilbert": {
        "vocab_size": 30522, "dim": 256, "n_layers": 4, "n_heads": 4, "hidden_dim": 1024,
        "max_position_embeddings": 512,
    },
    "electra": {**_COMMON, "embedding_size": 128},
    "mpnet": _COMMON,
    "modernbert": {
        **_COMMON, "num_hidden_layers": 6, "pad_token_id": 0, "bos_token_id": 101,
        "eos_token_id": 102, "cls_token_id": 101, "sep_token_id": 102,
    },
    "deberta-v2": {
        **_COMMON, "relative_attention": True, "position_buckets": 256, "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "type_vocab_size": 0,
        "position_biased_input": False, "max_relative_positions": -1,
    },
}  # fmt: skip
LENGTHS = ([1], [2, 2], [7, 3, 1], [130, 64], [512], [512, 200])
HEADINGS = (
    "family", "states", "logits", "chain", "survivors", "fp16", "fp16 survivors", "bf16",
    "bf16 survivors", "int8 agreement", "engines",
)  # fmt: skip


def random_folder(family: str, path: Path) -> Any:
    """A checkpoint of transformers with large random weights, and its model."""
    torch.manual_seed(0)
    labels = {0: "no", 1: "yes"}
    config = AutoConfig.for_model(family, **CONFIGS[family], id2label=labels)
    model = AutoModelForSequenceClassification.from_config(
        config, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embedding" not in name:
                parameter.mul_(2.0)
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (packaged_encoder() / name).is_file():
            shutil.copyfile(packaged_encoder() / name, path / name)
    return model


@torch.no_grad()
def against_transformers(theirs: Any, ours: ReducedModel) -> tuple[float, float]:
    """Largest difference of states and logits, relative to the largest value (above 1)."""
    generator = torch.Generator().manual_seed(1)
    worst = [0.0, 0.0]
    for lengths in LENGTHS:
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        ids = torch.randint(1000, 30000, mask.shape, generator=generator)
        ids = torch.where(mask, ids, ours.spec.pad_token_id)
        out = theirs.base_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        logits = theirs(input_ids=ids, attention_mask=mask.long()).logits
        layout = PaddedLayout(mask)
        hidden = ours.embed(ids, torch.zeros_like(ids), layout)
        hidden = ours.encoder.run_steps(hidden, layout, 0, ours.spec.num_steps)
        pairs = [(out[mask], hidden[mask]), (logits, ours.head(hidden, layout)["logits"])]
        for place, (expected, received) in enumerate(pairs):
            scale = max(1.0, float(expected.abs().max()))
            worst[place] = max(worst[place], float((expected - received).abs().max()) / scale)
    return worst[0], worst[1]


def row_of(family: str, scratch: Path) -> list[str]:
    """One family's figures."""
    theirs = random_folder(family, scratch / "folder")
    made = load_checkpoint(scratch / "folder")
    states, logits = against_transformers(theirs, made.model)
    model = made.model
    torch.manual_seed(1)
    model.set_reduction(ReductionConfig.default_for(model.spec))
    with torch.no_grad():
        for policy in model.policies:
            policy.score.weight.mul_(50.0)  # type: ignore[union-attr,operator]
    save_checkpoint(
        Checkpoint(model, scratch / "folder", made.max_length, hf_config=made.hf_config),
        scratch / "ckpt",
    )
    report = export_bundle(scratch / "ckpt", scratch / "bundle", int8=True, int8_limits=NO_LIMITS)
    cells = [
        family, f"{states:.0e}", f"{logits:.0e}", f"{report.chain.max_output_difference:.0e}",
        f"{report.chain.survivor_agreement:.2%}",
    ]  # fmt: skip
    built = []
    for precision in ("fp16", "bf16"):
        try:
            options = EngineOptions(precision=precision, lengths=(128, 512), batches=(1, 4, 8))
            parity = build_engines(scratch / "bundle", options).engine_set.manifest.parity
            built.append(precision)
            cells.append(f"{parity['max_output_difference']:.0e}")
            cells.append(f"{parity['survivor_agreement']:.2%}")
        except MissingDependencyError:
            raise
        except TrbertError as problem:
            console.notes.print(f"{family} {precision}: {problem}")
            cells += ["refused", ""]
    cells += [f"{report.int8_agreement:.1%}", ", ".join(built) or "none"]
    return cells


@click.command()
@click.option("--families", help="Some of them, such as bert,mpnet [default: all].")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table to this file.")
def main(families: str | None, markdown: Path | None) -> None:
    """Measure how exactly each family is computed."""
    lines = [list(HEADINGS), ["---"] * len(HEADINGS)]
    try:
        for family in list(CONFIGS) if families is None else families.split(","):
            with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                lines.append(row_of(family, Path(scratch)))
            console.out.print("  ".join(lines[-1]))
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    if markdown is not None:
        write_text(markdown, "".join("| " + " | ".join(line) + " |\n" for line in lines))


if __name__ == "__main__":
    main()
