"""Makes a checkpoint of any shape with random weights, to be timed where no trained one is at hand.

    python benchmarks/random_model.py --like CKPT --kept 0.5,0.15 --output bert-base
    python benchmarks/peers.py bert-base --data texts.jsonl --lengths 512

What a dense model takes depends on its shape alone. What the chain takes depends on how much its
policies keep: here the same share of every text, which ``trbert-deploy evaluate`` told of a
trained model ("tokens kept"). Its answers mean nothing. By default it has the shape of BERT-base.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click
import torch

from trbert_deploy import console
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.modeling.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.selection.rules import SelectionRule


def make_checkpoint(
    like: Checkpoint, kept: list[float], layers: int, width: int, heads: int, seed: int = 0
) -> Checkpoint:
    """A random model with the tokenizer, labels, positions and sample texts of another.

    Args:
        kept: for each default cut the tokens left, as a share of all tokens; falling.
        layers, width, heads: of the encoder; its feed-forward layers are four times as wide.

    Raises:
        ConfigError: shares that do not fall, or another number of them than there are cuts.
    """
    spec = replace(
        like.model.spec,
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        ffn_size=4 * width,
        embedding_size=width,
    )
    reduction = ReductionConfig.default_for(spec)
    shares = [1.0, *kept]
    falling = all(0 < later <= earlier for earlier, later in zip(shares, kept, strict=False))
    if len(kept) != len(reduction.cuts) or not falling:
        raise ConfigError(
            f"kept {','.join(f'{share:g}' for share in kept)}: expected {len(reduction.cuts)} "
            f"falling shares, above 0 and up to 1, for cuts at {reduction.places}"
        )
    ratios = [later / earlier for earlier, later in zip(shares, kept, strict=False)]
    torch.manual_seed(seed)
    rules = tuple(SelectionRule("ratio", ratio) for ratio in ratios)
    model = ReducedModel(spec, reduction.with_rules(rules))
    return replace(like, model=model, training={})


@click.command()
@click.option("--like", required=True, type=click.Path(path_type=Path), help="Trained checkpoint.")
@click.option("--kept", required=True, help="Tokens left behind each cut, such as 0.5,0.15.")
@click.option("--layers", default=12, show_default=True)
@click.option("--width", default=768, show_default=True)
@click.option("--heads", default=12, show_default=True)
@click.option("--output", required=True, type=click.Path(path_type=Path))
def main(like: Path, kept: str, layers: int, width: int, heads: int, output: Path) -> None:
    """Write a checkpoint with random weights to OUTPUT."""
    try:
        if output.exists():
            raise ConfigError(f"{output} is there already: choose another --output")
        try:
            shares = [float(share) for share in kept.split(",")]
        except ValueError:
            raise ConfigError(f"kept {kept!r}: expected numbers, such as 0.5,0.15") from None
        made = make_checkpoint(load_checkpoint(like), shares, layers, width, heads)
        save_checkpoint(made, output)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    console.out.print(f"{output}: {layers} layers, {width} wide, random weights")


if __name__ == "__main__":
    main()
