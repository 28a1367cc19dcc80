"""Finds the entities of a document of any length, such as the parties and dates of a contract.

    python examples/tag_contract.py bundle/ contract.txt

It prints kind, first letter and the one behind the last, and the entity itself, with tabs between
them. What is longer than the model takes is read in windows, so that nothing is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import trbert_deploy


def main() -> None:
    parser = argparse.ArgumentParser(description="Find the entities of a document.")
    parser.add_argument("bundle", help="of a tagger, by trbert-deploy export or compress")
    parser.add_argument("document", help="text file")
    parser.add_argument("--least", type=float, default=0.0, metavar="P", help="least probability")
    options = parser.parse_args()
    try:
        text = Path(options.document).read_text(encoding="utf-8")
        (answer,) = trbert_deploy.load(options.bundle)([text])
    except (trbert_deploy.TrbertError, OSError) as problem:
        sys.exit(f"error: {problem}")
    counts: Counter[str] = Counter()
    for entity in answer.entities:
        if entity.score >= options.least:
            counts[entity.entity_group] += 1
            shown = " ".join(text[entity.start : entity.end].split())
            print(entity.entity_group, entity.start, entity.end, shown, sep="\t")
    for kind, count in counts.most_common():
        print(f"{kind}: {count}", file=sys.stderr)


if __name__ == "__main__":
    main()
