"""Ranks the passages that a search engine found for a query, one a line.

    python examples/rerank_search_results.py bundle/ "who built the tower" passages.txt --top 5

It prints rank, score and passage, best first, with tabs between them. The bundle is of a
cross-encoder; where that has several labels, --label says which of them means relevant.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import trbert_deploy


def main() -> None:
    parser = argparse.ArgumentParser(description="Rank passages, one a line, for a query.")
    parser.add_argument("bundle", help="directory that trbert-deploy export or compress made")
    parser.add_argument("query")
    parser.add_argument("passages", type=Path, help="file of passages")
    parser.add_argument("--top", type=int, default=10, help="passages to print")
    parser.add_argument("--label", help="of a classifier: the label that means relevant")
    options = parser.parse_args()
    try:
        lines = options.passages.read_text(encoding="utf-8").splitlines()
        passages = [line for line in lines if line.strip()]
        reranker = trbert_deploy.load(options.bundle)
        found = reranker.rank(
            options.query, passages, options.top, return_documents=True, label=options.label
        )
    except (trbert_deploy.TrbertError, OSError) as problem:
        sys.exit(f"error: {problem}")
    for place, passage in enumerate(found, start=1):
        print(place, f"{passage['score']:.4f}", passage["text"], sep="\t")


if __name__ == "__main__":
    main()
