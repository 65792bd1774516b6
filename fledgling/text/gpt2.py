"""Reads GPT-2's tokenizer from the two files in which it was published.

A vocabulary and a list of merges define a byte-level BPE, so they become the same tokenizer.json that everything else
reads. The files are `encoder.json` and `vocab.bpe` (OpenAI), or `vocab.json` and `merges.txt` (Hugging Face).

Source: Radford et al. 2019; 50,257 entries, the last of them <|endoftext|>, which begins every document.
"""

from __future__ import annotations

import json
from pathlib import Path

from fledgling.config import UserError
from fledgling.text.bpe import read_merge_lines
from fledgling.text.tokenizer import Tokenizer

VOCABULARY_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
END_OF_TEXT = "<|endoftext|>"


def load_gpt2_tokenizer(directory: Path) -> Tokenizer | None:
    """Returns the tokenizer in `directory`, or None if it is not there. Raises UserError for corrupt files."""
    file_names = next(
        (names for names in VOCABULARY_FILES if all((directory / name).is_file() for name in names)), None
    )
    if file_names is None:
        return None
    entries, merges = (directory / name for name in file_names)
    try:
        vocabulary = json.loads(entries.read_text(encoding="utf-8"))
        lines = read_merge_lines(merges)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{directory}: {file_names[0]} or {file_names[1]} cannot be read: {str(error)[:100]}") from None
    pairs = [line.split(" ") for line in lines]
    has_all_ids = isinstance(vocabulary, dict) and sorted(map(str, vocabulary.values())) == sorted(
        map(str, range(len(vocabulary)))
    )
    if not has_all_ids or not all(len(pair) == 2 and {*pair, "".join(pair)} <= vocabulary.keys() for pair in pairs):
        raise UserError(
            f"{entries} and {merges.name} are not a vocabulary and its merges: entries and ids do not match"
        )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special_tokens = (
        [{"id": vocabulary[END_OF_TEXT], "content": END_OF_TEXT, **flags}] if END_OF_TEXT in vocabulary else []
    )
    return Tokenizer(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special_tokens,
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": pairs},
        }
    )
