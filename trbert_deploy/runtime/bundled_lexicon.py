"""Puts another lexicon into a bundle, without training or export."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import LEXICON, MANIFEST, write_manifest
from trbert_deploy.errors import ConfigError
from trbert_deploy.files import sha256, staged_directory
from trbert_deploy.lexicon.entries import Entry, require_tags, write_entries
from trbert_deploy.tasks.registry import task_of


def set_lexicon(path: Path, entries: Sequence[Entry], name: str = "the lexicon") -> Bundle:
    """Replace a bundle's lexicon, in one step: who opens the bundle finds the old or the new one.

    Weights, graphs and engines stay as they are. A service takes the bundle over as any other that
    was put in its place.

    Args:
        path: of the bundle.
        entries: all of the new lexicon.
        name: what errors call it.

    Returns:
        The bundle as it is now.

    Raises:
        StorageError, BundleError: no bundle, or a damaged one, or it was replaced meanwhile.
        ConfigError: the model takes no lexicon, or does not know a tag.
    """
    bundle = Bundle.open(path)
    tags = task_of(bundle.manifest.encoder).lexicon_tags
    if not tags:
        raise ConfigError(
            f"{path} takes no lexicon: expected the bundle of a tagger that was trained with "
            "--lexicon"
        )
    require_tags(entries, tags, name)
    kept = {each: digest for each, digest in bundle.manifest.files.items() if each != LEXICON}
    with staged_directory(path) as staging:
        with bundle.reading(*kept):  # all of them are those that were verified
            for each in sorted(path.iterdir()):
                if each.is_dir():
                    shutil.copytree(each, staging / each.name, copy_function=_link)
                elif each.name not in (LEXICON, MANIFEST):
                    _link(each, staging / each.name)
        write_entries(staging / LEXICON, entries)
        files = {**kept, LEXICON: sha256(staging / LEXICON)}
        write_manifest(staging, replace(bundle.manifest, files=files))
    return Bundle.open(path, verify=False)


def _link(source: str | Path, target: str | Path) -> str | Path:
    """The same file at another place: weights are large, so it is copied where no link can be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target
