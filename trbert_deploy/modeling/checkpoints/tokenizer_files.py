"""The files that a checkpoint's tokenizer consists of, in the families that transformers knows."""

from __future__ import annotations

TOKENIZER_FILE = "tokenizer.json"

#: What stands for a vocabulary where there is no tokenizer.json; sentencepiece reads the models.
SENTENCEPIECE_FILES = (
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "sentencepiece.model",
    "tokenizer.model",
)
VOCABULARIES = (
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    *((name,) for name in SENTENCEPIECE_FILES),
)
#: Names the longest row, in tokens, in the first of these.
LONGEST_ROW = "model_max_length"
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

#: All that belongs to a tokenizer, and travels with it.
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    *SETTINGS_FILES,
    *(name for names in VOCABULARIES for name in names),
)
