"""Chooses the measure word (classifier) of Mandarin phrases, where they have a mask.

    python examples/choose_classifier_word.py bundle/ phrases.txt --among 個 隻 本 張

A line such as 三[MASK]書 gives 本 with its probability, then the next best, and the phrase with it,
with tabs between them. The bundle is of a masked language model, trained to choose or not:
trbert-deploy train --model bert-base-chinese --task fill-mask --train phrases.jsonl, where each
record has a text with one [MASK] and the right word as its label.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import trbert_deploy


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose the classifier of phrases.")
    parser.add_argument("bundle", help="of a masked language model, by trbert-deploy export")
    parser.add_argument("phrases", help="text file, one phrase with a mask on each line")
    parser.add_argument("--among", nargs="+", metavar="WORD", help="[default: the model's words]")
    options = parser.parse_args()
    try:
        lines = Path(options.phrases).read_text(encoding="utf-8").splitlines()
        phrases = [line for line in lines if line.strip()]
        fill = trbert_deploy.pipeline("fill-mask", options.bundle, targets=options.among, top_k=2)
        for found in fill(iter(phrases)):
            if isinstance(found[0], list):
                sys.exit("error: a phrase has several masks: expected one in each")
            best = found[0]
            others = " ".join(other["token_str"] for other in found[1:])
            print(best["token_str"], f"{best['score']:.3f}", others, best["sequence"], sep="\t")
    except (trbert_deploy.TrbertError, OSError) as problem:
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()
