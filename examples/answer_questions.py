"""Answers questions about one document of any length.

    python examples/answer_questions.py bundle/ manual.txt "How long is the warranty?" "Who pays?"

It prints probability, answer and question, with tabs between them; the answer is empty where the
document has none.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import trbert_deploy


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer questions about a document.")
    parser.add_argument("bundle", help="of a reader, by trbert-deploy export or compress")
    parser.add_argument("document", help="text file")
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    options = parser.parse_args()
    try:
        text = Path(options.document).read_text(encoding="utf-8")
        reader = trbert_deploy.load(options.bundle)
        answers = reader([(question, text) for question in options.questions])
    except (trbert_deploy.TrbertError, OSError) as problem:
        sys.exit(f"error: {problem}")
    for question, found in zip(options.questions, answers, strict=True):
        shown = " ".join(found.answer.split())
        print(f"{found.score:.3f}", shown, question, sep="\t")


if __name__ == "__main__":
    main()
