"""Lines of many scripts and kinds of text, always the same ones, to tokenize."""

from __future__ import annotations

import unicodedata
from functools import cache
from random import Random

#: First and last letter of a script's range; those that Unicode has not assigned are left out.
_SCRIPTS = {
    "latin": (0x61, 0x7A),
    "latin with accents": (0xC0, 0x24F),
    "vietnamese": (0x1EA0, 0x1EF9),
    "greek": (0x386, 0x3CE),
    "cyrillic": (0x400, 0x45F),
    "armenian": (0x531, 0x586),
    "hebrew": (0x5D0, 0x5EA),
    "arabic": (0x620, 0x652),
    "devanagari": (0x904, 0x94D),
    "thai": (0xE01, 0xE4E),
    "hangul": (0xAC00, 0xAC80),
    "jamo": (0x1100, 0x1175),
    "kana": (0x3041, 0x30FE),
    "cjk": (0x4E00, 0x4E80),
    "cjk, rare": (0x20000, 0x20030),
    "full width": (0xFF01, 0xFF5E),
    "ligatures and circles": (0xFB00, 0xFB06),
    "mathematical letters": (0x1D400, 0x1D433),
}
_MARKS = "\u0300\u0301\u0308\u0323\u0327\u030a\u0345\u0591\u064b\u093c"
_SPACES = (" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\x85")
_CONTROLS = ("\x00", "\x01", "\x1f", "\x7f", "\u200d", "\u200e", "\ufeff", "\ufffd", "\u00ad")
_EMOJI = ("😀", "👩‍💻", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "1️⃣", "♟")
_EXTRAS = (
    "https://www.example.org/a/b?c=1&d=%20#e",
    "someone@example.org",
    "1,234.56",
    "٣٤٥",
    "12:34:56",
    "def f(x): return x**2  # comment",
    "{'a': [1, 2]} != <b/>",
    "don't can't I'LL",
    "``quoted'' ''text``",
    "U.S.A. ... \u2014 \u2013 «»„“",
    "ﬁnd İstanbul \u0131ŞİK STRAẞE \u017f Ǆ",
    "[SEP] [CLS] [MASK] [UNK] [PAD]",
    "<s> </s> <mask> <unk> <pad>",
    "a<mask>b [MASK]c <extra> x<extra>y <Extra>",
    "▁under▁score ##ing Ġg",
)


@cache
def letters_of(script: str) -> tuple[str, ...]:
    """The assigned characters of a script."""
    first, last = _SCRIPTS[script]
    return tuple(
        chr(code) for code in range(first, last + 1) if unicodedata.category(chr(code)) != "Cn"
    )


def lines(count: int, seed: int = 0) -> list[str]:
    """Lines of 1 to 12 pieces: words of any script, spaces, marks, controls, emoji, code."""
    random = Random(seed)
    made = []
    while len(made) < count:
        script = random.choice(list(_SCRIPTS))
        line = "".join(_piece(random, script) for _ in range(random.randint(1, 12)))
        if line.strip():
            made.append(line)
    return made


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of such lines."""
    texts = lines(2 * count, seed)
    return list(zip(texts[::2], texts[1::2], strict=True))


def _piece(random: Random, script: str) -> str:
    kind = random.random()
    if kind < 0.6:
        return _word(random, script) + " "
    if kind < 0.7:
        return _word(random, random.choice(list(_SCRIPTS))) + random.choice(_SPACES)
    if kind < 0.8:
        return random.choice(_EXTRAS) + random.choice((" ", ""))
    if kind < 0.86:
        return random.choice(_EMOJI) + random.choice((" ", ""))
    if kind < 0.92:
        return str(random.randrange(10**6)) + random.choice((" ", ". ", "%", ""))
    if kind < 0.96:
        return random.choice(_CONTROLS)
    return random.choice(_SPACES)


def _word(random: Random, script: str) -> str:
    # Few letters at the head of each script make most words, so that a trainer finds pieces.
    letters = letters_of(script)
    word = "".join(
        letters[min(int(random.expovariate(6 / len(letters))), len(letters) - 1)]
        for _ in range(random.randint(1, 7))
    )
    style = random.random()
    if style < 0.1:
        word += random.choice(_MARKS)
    elif style < 0.2:
        word = word.upper()
    elif style < 0.3:
        word = word.title()
    elif style < 0.35:
        word = unicodedata.normalize("NFD", word)
    return word + (random.choice(".,;!?") if random.random() < 0.1 else "")
