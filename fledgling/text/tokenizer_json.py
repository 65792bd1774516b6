"""The contents of a tokenizer.json: those of a trained vocabulary, and those of any tokenizer for text alone."""

from __future__ import annotations

import copy
import json
from typing import Any

from fledgling.text import bpe
from fledgling.text.bpe import byte_alphabet
from fledgling.text.sentence_piece import hide_tokens, is_sentence_piece

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
LAYOUT = "fledgling"  # key of tokenizer.json for the layout of conversations that came with an open model


def build_tokenizer_json(merges: list[bpe.Merge], pattern: str) -> dict[str, Any]:
    """Returns the contents of a tokenizer.json: ids are bytes, then merges in order, then SPECIAL_TOKENS."""
    vocabulary = {character: byte for byte, character in enumerate(byte_alphabet())}
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": len(vocabulary) + number, "content": name, **flags} for number, name in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(merge) for merge in merges],
        },
    }


def without_special_tokens(document: dict[str, Any]) -> str:
    """Returns a tokenizer.json for text alone, without special tokens in any place."""
    added = document.get("added_tokens") or []
    names = {token["content"] for token in added if token.get("special", True)}
    plain = copy.copy(document)
    plain.pop(LAYOUT, None)
    plain["added_tokens"] = [token for token in added if token["content"] not in names]
    plain["post_processor"], plain["truncation"], plain["padding"] = None, None, None
    model = plain["model"] = copy.copy(document["model"])
    if is_sentence_piece(document):
        return json.dumps({**plain, "model": hide_tokens(model, names)})
    model["dropout"] = None  # merges left out at random, for training alone: a text has one encoding
    # "left right" of older files: `tokenizers` takes a merge that begins with "#version" for a header
    model["merges"] = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    model["vocab"] = {t: i for t, i in document["model"]["vocab"].items() if t not in names}
    return json.dumps(plain)
