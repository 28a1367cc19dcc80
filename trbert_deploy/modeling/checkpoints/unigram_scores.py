"""Writes a tokenizer.json whose scores come back exactly as they are.

The pieces of a Unigram tokenizer have scores, and ways to split a word are compared by their sums.
Many ways tie but for rounding: "aa" + "a" and "a" + "aa". The tokenizers package does not always
read the number nearest to a numeral, while transformers, which hands it the scores from Python,
does; so that the same file gives them different ids now and then. Here each score is written with
digits that both read as the same number, if there are any.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from trbert_deploy.files import staged_file

_PLACEHOLDER = "vocabulary of the unigram model"
_POWERS = tuple(enumerate(10.0**power for power in range(23)))  # exact in float64, as 1e23 is not
_LARGEST_INTEGER = 2.0**64  # that a numeral's digits may make


def save_exactly(tokenizer: Tokenizer, path: Path) -> None:
    """Write ``tokenizer`` as a tokenizer.json, whole or not at all."""
    described = json.loads(tokenizer.to_str())
    vocabulary = None
    if described["model"]["type"] == "Unigram":
        pairs = described["model"]["vocab"]
        vocabulary = ",\n".join(
            f"[{json.dumps(piece, ensure_ascii=False)}, {numeral(score)}]" for piece, score in pairs
        )
        described["model"]["vocab"] = _PLACEHOLDER
    text = json.dumps(described, ensure_ascii=False, indent=2)
    if vocabulary is not None:
        text = text.replace(f'"vocab": "{_PLACEHOLDER}"', f'"vocab": [\n{vocabulary}\n]', 1)
    with staged_file(path) as staging:
        staging.write_text(text, encoding="utf-8")


def numeral(number: float) -> str:
    """A JSON numeral that is read as ``number`` by the tokenizers package, too.

    That package rounds twice: the digits, as one integer, to float64, and then its quotient by a
    power of ten. With an integer that float64 holds, and a power that it holds, only the quotient
    is rounded, as it should be. One number in a thousand has no such numeral, and may be read as
    its neighbour.
    """
    for power, divisor in _POWERS:
        digits = number * divisor
        if digits.is_integer() and digits / divisor == number and abs(digits) < _LARGEST_INTEGER:
            return f"{int(digits)}e-{power}" if power else repr(number)
    return repr(number)
