"""Classifies reviews, one a line, and counts the labels.

    python examples/classify_reviews.py bundle/ reviews.txt
    python examples/classify_reviews.py bundle/ - --unsure 0.8 < reviews.txt

It prints label, probability and review, with tabs between them, and the counts on stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import tee
from pathlib import Path

import trbert_deploy


def reviews_of(name: str) -> Iterator[str]:
    """The lines of a file, or of standard input, that are not blank."""
    with nullcontext(sys.stdin) if name == "-" else Path(name).open(encoding="utf-8") as lines:
        yield from (line.strip() for line in lines if line.strip())


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify reviews, one a line.")
    parser.add_argument("bundle", help="directory that trbert-deploy export or compress made")
    parser.add_argument("reviews", help="file of reviews; - for standard input")
    parser.add_argument(
        "--unsure", type=float, default=0.0, help="call what is less probable 'unsure'"
    )
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    try:
        classify = trbert_deploy.load(options.bundle)
        reviews, texts = tee(reviews_of(options.reviews))
        for review, answer in zip(reviews, classify.stream(texts), strict=True):
            label = answer.label if answer.score >= options.unsure else "unsure"
            counts[label] += 1
            print(label, f"{answer.score:.3f}", review, sep="\t")
    except (trbert_deploy.TrbertError, OSError) as problem:
        sys.exit(f"error: {problem}")
    for label, count in counts.most_common():
        print(f"{label}: {count} of {counts.total()}", file=sys.stderr)


if __name__ == "__main__":
    main()
