"""The tokenizer in a GGUF file as a tokenizer.json: byte-level BPE ("gpt2") or SentencePiece's BPE ("llama").

SentencePiece has scores instead of merges: a pair merges where its union is a piece, the piece with the best score
first, which is the order of a list of merges.
"""

from __future__ import annotations

from typing import Any

from fledgling.config import UserError
from fledgling.text.bpe import split_pattern
from fledgling.text.sentence_piece import SPACE
from fledgling.text.tokenizer import Tokenizer

CONTROL, UNKNOWN = 3, 2  # types of tokens
MAX_PIECE = 256  # characters of a piece whose halves are looked for
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
DIGITS_OF = {"qwen2": 1, "llama-bpe": 3, "llama3": 3, "dbrx": 3, "smaug-bpe": 3}  # pre-tokenizer: digits in a token
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def read_gguf_tokenizer(values: dict[str, Any]) -> Tokenizer:
    """Returns the tokenizer of a file's values, with its chat template. Raises UserError for an unknown kind."""
    tokens, types = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise UserError("the GGUF file has no tokens (tokenizer.ggml.tokens)")
    if not isinstance(types, list) or len(types) != len(tokens):
        types = [1] * len(tokens)
    kind = values.get("tokenizer.ggml.model")
    if kind == "gpt2":
        model, rest = _read_byte_level(values, tokens)
    elif kind == "llama":
        model, rest = _read_sentence_piece(values, tokens, types)
    else:
        raise UserError(f"tokenizer.ggml.model is {str(kind)[:40]!r}; expected gpt2 or llama")
    added = [
        {"id": index, "content": token, **FLAGS, "special": types[index] in (CONTROL, UNKNOWN)}
        for index, token in enumerate(tokens)
        if types[index] in (CONTROL, UNKNOWN, 4)
    ]
    document = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None}
    return Tokenizer({**document, **rest, "model": model}).with_layout(_read_layout(values, tokens))


def _read_layout(values: dict[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    template = values.get("tokenizer.chat_template")
    if not isinstance(template, str):
        return None

    def text_of(key: str) -> str:
        index = values.get(f"tokenizer.ggml.{key}")
        return tokens[index] if type(index) is int and 0 <= index < len(tokens) else ""

    stops = [values.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    ids = [index for index in stops if type(index) is int]
    names = {"bos_token": text_of("bos_token_id"), "eos_token": text_of("eos_token_id")}
    return {"chat_template": template, **names, "stop_ids": ids}


def _read_byte_level(values: dict[str, Any], tokens: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    name, merges = values.get("tokenizer.ggml.pre", "gpt-2"), values.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(merge, str) and " " in merge for merge in merges):
        raise UserError("the GGUF file has no merges (tokenizer.ggml.merges)")
    if name in ("gpt-2", "default"):
        pre: dict[str, Any] = {**BYTE_LEVEL, "use_regex": True}
    elif name == "smollm":
        digits = {"type": "Digits", "individual_digits": True}
        pre = {"type": "Sequence", "pretokenizers": [digits, {**BYTE_LEVEL, "use_regex": True}]}
    elif name in DIGITS_OF:
        pattern = {"Regex": split_pattern(DIGITS_OF[name])}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        pre = {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}
    else:
        known = ", ".join(("gpt-2", "smollm", *DIGITS_OF))
        raise UserError(f"tokenizer.ggml.pre is {str(name)[:40]!r}; expected one of {known}")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [merge.split(" ", 1) for merge in merges]
    model = {"type": "BPE", "vocab": vocabulary, "merges": pairs, "ignore_merges": name in ("llama-bpe", "llama3")}
    return model, {"normalizer": None, "pre_tokenizer": pre, "decoder": BYTE_LEVEL}


def _read_sentence_piece(
    values: dict[str, Any], tokens: list[str], types: list[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    scores = values.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise UserError("the GGUF file has no scores of its tokens (tokenizer.ggml.scores)")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges: list[tuple[float, int, int, str, str]] = []
    for index, token in enumerate(tokens):
        if types[index] != 1 or len(token) > MAX_PIECE:
            continue
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        merges += [
            (-float(scores[index]), vocabulary[left], vocabulary[right], left, right)
            for left, right in halves
            if left in vocabulary and right in vocabulary
        ]
    merges.sort()
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    adds_space = values.get("tokenizer.ggml.add_space_prefix", True) is not False
    normalizers = [{"type": "Prepend", "prepend": SPACE}, replace] if adds_space else [replace]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if adds_space else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    model = {
        "type": "BPE",
        "vocab": vocabulary,
        "merges": [[left, right] for *_, left, right in merges],
        "byte_fallback": True,
        "fuse_unk": True,
        "unk_token": unknown,
    }
    rest = {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }
    return model, rest
