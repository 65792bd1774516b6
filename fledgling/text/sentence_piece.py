"""Tokenizers of SentencePiece in tokenizer.json: BPE with bytes to fall back on (Llama 2, Mistral, Gemma), or Unigram.

A space is U+2581 in their pieces, and most put one before a text. A byte that has no piece is the token <0xNN>.

Source: Kudo and Richardson 2018, arXiv 1808.06226; Unigram, Kudo 2018, arXiv 1804.10959.
"""

from __future__ import annotations

import json
import re
from typing import Any

SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def is_sentence_piece(document: dict[str, Any]) -> bool:
    """Returns whether the contents of a tokenizer.json are of this kind."""
    model = document.get("model") or {}
    replaces = SPACE in json.dumps([document.get("normalizer"), document.get("pre_tokenizer")], ensure_ascii=False)
    return model.get("type") in ("BPE", "Unigram") and replaces


def vocabulary_of(document: dict[str, Any]) -> dict[str, int]:
    """Returns piece -> id."""
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [piece, log probability]
        return {piece: index for index, (piece, _) in enumerate(vocabulary)}
    return vocabulary


def piece_bytes(piece: str) -> bytes:
    """Returns the bytes of text that a piece represents."""
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


def adds_space(document: dict[str, Any]) -> bool:
    """Returns whether a text is tokenized with a space before it."""
    parts = json.dumps([document.get("normalizer"), document.get("pre_tokenizer")], ensure_ascii=False)
    prepends = '"Prepend"' in parts or '"prepend_scheme": "first"' in parts or '"prepend_scheme": "always"' in parts
    return is_sentence_piece(document) and prepends


def hide_tokens(model: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Returns the model with pieces that no text can match, so that a text never becomes a control token.

    Their ids stay. A space is in no normalized text.
    """
    if isinstance(model["vocab"], list):
        pieces = enumerate(model["vocab"])
        hidden = [[f" {index} " if piece in names else piece, score] for index, (piece, score) in pieces]
        return {**model, "vocab": hidden}
    unknown = model.get("unk_token")
    vocabulary = {piece: index for piece, index in model["vocab"].items() if piece not in names or piece == unknown}
    return {**model, "vocab": vocabulary, "dropout": None, "ignore_merges": False}
