r"""The tokenizer as page/tokenizer.js takes it: merges of ids, special tokens, and the classes of its split regex.

The regex names classes of Unicode (\p{L}, \p{N}, \s), of which every browser knows another version. So the page gets
the classes of the library that encodes here, as ranges.
"""

from __future__ import annotations

from typing import Any

from fledgling.config import UserError
from fledgling.text.bpe import byte_alphabet, split_pattern
from fledgling.text.tokenizer import Tokenizer
from fledgling.text.tokenizer_json import SPECIAL_TOKENS, build_tokenizer_json
from fledgling.text.unicode_classes import list_ranges

CLASSES = {"letters": r"\p{L}", "numbers": r"\p{N}", "spaces": r"\s"}


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns what page/tokenizer.js needs besides the merges.

    Raises UserError unless the tokenizer is one that `fledgling tokenizer` trains.
    """
    ranges = {name: write_ranges(pattern) for name, pattern in CLASSES.items()}
    return {"special": tokenizer.special_tokens, "splitter": {**ranges, "maxDigits": find_max_digits(tokenizer)}}


def find_max_digits(tokenizer: Tokenizer) -> int:
    """Returns the longest group of digits; raises UserError unless the page knows this kind of tokenizer."""
    if tokenizer.chat_layout:
        raise UserError(
            "export html knows the layout of this program's own chat models, not this model's chat template"
        )
    if not set(SPECIAL_TOKENS[:5]) <= tokenizer.special_tokens.keys():
        raise UserError("export html needs a chat model: this tokenizer has no <|user_start|> and <|assistant_end|>")
    document = tokenizer.tokenizer_json
    for digits in (1, 2, 3):
        expected = build_tokenizer_json([], split_pattern(digits))
        same = (document.get(key) == expected[key] for key in ("normalizer", "pre_tokenizer", "post_processor"))
        flags = (document["model"].get(key) == expected["model"][key] for key in ("ignore_merges", "byte_fallback"))
        if all(same) and all(flags):
            return digits
    raise UserError(
        "export html knows the tokenizers of `fledgling tokenizer`; this one splits or encodes in another way"
    )


def list_merges(tokenizer: Tokenizer) -> list[tuple[int, int, int]]:
    """Returns (left, right, merged) ids in the order of the merges.

    Raises UserError where the ids are not bytes, merges, and special tokens last.
    """
    vocab = tokenizer.vocab
    pairs = [
        merge.split(" ", 1) if isinstance(merge, str) else merge
        for merge in tokenizer.tokenizer_json["model"]["merges"]
    ]
    merges = [(vocab[left], vocab[right], vocab[left + right]) for left, right in pairs]
    known = [*range(256), *(merged for *_, merged in merges), *tokenizer.special_tokens.values()]
    bytes_first = [vocab.get(character) for character in byte_alphabet()] == list(range(256))
    if not bytes_first or set(known) != set(range(tokenizer.vocab_size)):
        raise UserError(
            "export html knows vocabularies of bytes, merges and special tokens; this one has other entries"
        )
    return merges


def write_ranges(pattern: str) -> str:
    """Returns the characters of a class as ranges for a regex of JavaScript with the flag u."""
    return "".join(rf"\u{{{first:x}}}-\u{{{last:x}}}" for first, last in list_ranges(pattern))
