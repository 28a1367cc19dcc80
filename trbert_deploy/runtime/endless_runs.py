"""Words and spaces without end, of which BERT's tokenizers need not see more than a beginning."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

#: Kinds of characters that BERT's normalizer and splitting treat alike, each wherever it stands:
#: they stay in one word, separate words, or are dropped.
_LETTERS = "0-9A-Za-z\xc0-\u024f\u0400-\u0481\u048a-\u052f\u3041-\u3096\uac00-\ud7a3"
_SPACES = " \t\n\r"
_DROPPED = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b-\u200f\ufeff\ufffd"


@dataclass(frozen=True)
class EndlessRuns:
    """Runs of characters of a kind, of which the first ``kept`` give the tokens of them all."""

    pattern: re.Pattern[str]
    kept: int

    def shortened(self, text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The text with less of each run.

        Returns:
            It, and (place in it, characters left out there and before) for each run.
        """
        kept, left_out = [], []
        copied = gone = 0
        for match in self.pattern.finditer(text):
            stop = match.start() + self.kept
            kept.append(text[copied:stop])
            place, gone, copied = stop - gone, gone + match.end() - stop, match.end()
            left_out.append((place, gone))
        return "".join([*kept, text[copied:]]), tuple(left_out)


def endless_runs(tokenizer: Tokenizer) -> EndlessRuns | None:
    """The runs of a tokenizer like BERT's; None for others.

    A word of more characters than WordPiece takes is one unknown token, however many they are. An
    added token lies in no such run, since it is shorter; and it must not begin or end in one.
    """
    normalizer = tokenizer.normalizer
    if not (
        isinstance(tokenizer.model, WordPiece)
        and isinstance(normalizer, BertNormalizer)
        and normalizer.clean_text
        and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
    ):
        return None
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    names = [*added, *map(normalizer.normalize_str, added)]
    edge = re.compile(f"[{_LETTERS}{_SPACES}{_DROPPED}]")
    if not all(name and not edge.match(name) and not edge.match(name[-1]) for name in names):
        return None
    kept = max([tokenizer.model.max_input_chars_per_word, *map(len, names)]) + 1
    kinds = (_LETTERS, _SPACES, _DROPPED)
    runs = "|".join(f"(?<![{kind}])[{kind}]{{{kept + 1},}}" for kind in kinds)
    return EndlessRuns(re.compile(runs), kept)
