"""The commands ``trbert-deploy lexicon``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from trbert_deploy import console

#: Phrases of each tag that are shown.
_SHOWN = 5


@click.group()
def lexicon() -> None:
    """The phrases of a tagger's bundle: replace them, without training."""


@lexicon.command("set")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def set_(bundle: Path, file: Path) -> None:
    """Make FILE the lexicon of BUNDLE, in one step (docs/lexicon.md)."""
    from trbert_deploy.lexicon.entries import read_entries
    from trbert_deploy.runtime.bundled_lexicon import set_lexicon

    entries = read_entries(file)
    set_lexicon(bundle, entries, f"the lexicon {file}")
    phrases = len({entry.phrase for entry in entries})
    console.out.print(f"{bundle}: {phrases:,} phrases", soft_wrap=True, markup=False)


@lexicon.command()
@click.argument("bundle", type=click.Path(path_type=Path), default=Path("bundle"))
def show(bundle: Path) -> None:
    """Say which tags the lexicon of BUNDLE has, and some phrases of each."""
    from trbert_deploy.bundle.bundle import Bundle
    from trbert_deploy.errors import ConfigError, few
    from trbert_deploy.tasks.registry import task_of

    opened = Bundle.open(bundle)
    tags = task_of(opened.manifest.encoder).lexicon_tags
    if not tags:
        raise ConfigError(f"{bundle} takes no lexicon: train a tagger with --lexicon")
    entries = opened.lexicon()
    counts = Counter(entry.tag for entry in entries)
    for tag in tags:
        phrases = [entry.phrase for entry in entries if entry.tag == tag]
        told = f": {few(phrases, _SHOWN)}" if phrases else ""
        console.out.print(f"{tag}: {counts[tag]:,} phrases{told}", soft_wrap=True, markup=False)
