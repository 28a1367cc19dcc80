"""Embeds documents, one a line, and finds those that are nearest to a query.

    python examples/search_documents.py bundle/ documents.txt "who returns from the war"

It prints the similarity and the document, best first, with a tab between them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import trbert_deploy


def main() -> None:
    parser = argparse.ArgumentParser(description="Search documents, one a line.")
    parser.add_argument("bundle", help="of a sentence encoder, by trbert-deploy export or compress")
    parser.add_argument("documents", help="file of documents")
    parser.add_argument("query")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="documents to print")
    options = parser.parse_args()
    try:
        lines = Path(options.documents).read_text(encoding="utf-8").splitlines()
        documents = [line.strip() for line in lines if line.strip()]
        encoder = trbert_deploy.load(options.bundle)
        found = encoder.encode_document(documents, normalize_embeddings=True)  # [N, D]
        # A query has few tokens: remove none of them.
        query = np.array(encoder([options.query], dense=True)[0].embedding)
    except (trbert_deploy.TrbertError, OSError) as problem:
        sys.exit(f"error: {problem}")
    similar = found @ (query / np.linalg.norm(query))
    for place in np.argsort(-similar, kind="stable")[: options.top]:
        print(f"{similar[place]:.3f}", documents[place], sep="\t")


if __name__ == "__main__":
    main()
