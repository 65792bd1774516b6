"""The tokenizer: text to ids and back, stored in a tokenizer.json that other programs read.

`encode` knows no special token, so nothing that a user writes can become one. Special tokens are inserted by id, from
`special_tokens`, by the code that renders a conversation. The ids of the first 256 tokens are the bytes themselves,
and special tokens come last. `tokenizers` encodes a text; `encode_batch` uses `gigatoken`, 10 to 50 times faster, if
it is installed and supports the split (`batch_library` names the one in use). The ids are the same (tested).
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from fledgling.config import UserError
from fledgling.record.durable import write_file
from fledgling.text import bpe
from fledgling.text.batch_encoding import EncodeBatch, make_batch_encoder
from fledgling.text.bpe import byte_alphabet, replace_surrogates

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
BOS_NAMES = ("<|bos|>", "<|begin_of_text|>", "<s>", "<|endoftext|>")  # of this project, Llama 3, Llama 2, GPT-2


class Tokenizer:
    """A byte-level BPE vocabulary with its special tokens.

    Attributes:
        tokenizer_json: contents of the tokenizer.json.
        training_info: trainer, characters and seconds, if this process trained it.
        special_tokens: special token -> id.
        vocab_size: V, with special tokens.
    """

    def __init__(self, tokenizer_json: dict[str, Any], training_info: dict[str, Any] | None = None) -> None:
        """Raises UserError unless the contents of a tokenizer.json are a byte-level BPE."""
        model = tokenizer_json.get("model") or {}
        if model.get("type") != "BPE" or '"ByteLevel"' not in json.dumps(tokenizer_json.get("pre_tokenizer")):
            raise UserError(
                f"this tokenizer is {model.get('type', 'of no known kind')}; expected byte-level BPE "
                "(GPT-2, Llama 3, Qwen ...) in the tokenizer.json of Hugging Face tokenizers"
            )
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise UserError(
                "this tokenizer marks pieces by a prefix or suffix (continuing_subword_prefix, end_of_word_suffix); "
                "expected byte-level BPE without them"
            )
        self.tokenizer_json = tokenizer_json
        self.training_info = training_info
        self.special_tokens: dict[str, int] = {t["content"]: t["id"] for t in tokenizer_json.get("added_tokens") or []}
        ids = [*model["vocab"].values(), *self.special_tokens.values()]
        self.vocab_size: int = max(ids) + 1
        self._plain_json = _without_special_tokens(tokenizer_json)

    # ---- training, loading, saving ---------------------------------------------------------------

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        max_digits: int = 1,
        letter_tokens: bool = True,
        max_characters: int | None = None,
        trainer: str = "auto",
        progress: Callable[[int], None] | None = None,
    ) -> Tokenizer:
        """Trains a tokenizer on documents.

        Args:
            texts: documents, read once.
            vocab_size: all tokens, with special tokens.
            max_digits: longest group of digits in a token (1, 2 or 3).
            letter_tokens: whether every " " + ASCII letter is one token (single letters always are: they are bytes).
            max_characters: stops reading after so many characters; None reads all.
            trainer: "auto", "ffbpe" or "tokenizers"; the result is the same.
            progress: is called with the number of characters read so far.

        Raises:
            UserError: if vocab_size is below the minimum, or above what the text supports (a pair that occurs once
                is not merged).
        """
        entries = vocab_size - len(SPECIAL_TOKENS)
        minimum = 256 + (52 if letter_tokens else 0)
        if entries < minimum:
            raise UserError(
                f"tokenizer.vocab_size is {vocab_size}; the bytes{', letters' if letter_tokens else ''} and the "
                f"special tokens alone take {minimum + len(SPECIAL_TOKENS)}: choose at least that"
            )
        pattern = bpe.split_pattern(max_digits)
        trainer = bpe.pick_trainer(trainer)
        characters_read = 0

        def count(total: int) -> None:
            nonlocal characters_read
            characters_read = total
            if progress:
                progress(total)

        start = perf_counter()
        merges = bpe.fit_merges(
            bpe.learn_merges(texts, entries, max_digits, trainer, max_characters, count), entries, letter_tokens
        )
        tokenizer = cls(_build_tokenizer_json(merges, pattern))
        tokenizer.training_info = {
            "trainer": trainer,
            "characters": characters_read,
            "seconds": round(perf_counter() - start, 3),
            "vocab_size": tokenizer.vocab_size,
            "max_digits": max_digits,
            "letter_tokens": letter_tokens,
        }
        if tokenizer.vocab_size < vocab_size:
            raise UserError(
                f"tokenizer.vocab_size is {vocab_size}, but {characters_read:,} characters of text support only "
                f"{tokenizer.vocab_size}: choose at most {tokenizer.vocab_size}, or give more text"
            )
        return tokenizer

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Loads a tokenizer.json, or the one in a directory. Raises UserError if it is missing or damaged."""
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"no tokenizer at {file}; expected a tokenizer.json or a directory with one") from None
        except (ValueError, OSError) as error:
            raise UserError(f"{file} is not a readable tokenizer.json: {error}") from None
        if not isinstance(document, dict):
            raise UserError(f"{file} is not a tokenizer.json: expected a JSON object")
        try:
            return cls(document)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file} is not a whole tokenizer.json: {type(error).__name__} {error}") from None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes tokenizer.json to `path` (a file ending in .json, or a directory), and returns the file.

        One rename puts it in place, so no reader sees a partial file, not even after a power cut.
        """
        file = Path(path)
        file = file if file.suffix == ".json" else file / "tokenizer.json"
        write_file(file, json.dumps(self.tokenizer_json, ensure_ascii=False, indent=1).encode())
        return file

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the contents, in hex; it does not depend on white space in the file."""
        canonical = json.dumps(self.tokenizer_json, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    # ---- text to ids -----------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, never that of a special token, whatever the text contains. Thread-safe."""
        return self._single.encode(replace_surrogates(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes each of `texts`, on all cores. Thread-safe."""
        return self._batch_encoder[1]([replace_surrogates(text) for text in texts])

    @property
    def batch_library(self) -> str:
        """The library behind `encode_batch`: "gigatoken" or "tokenizers"."""
        return self._batch_encoder[0]

    @cached_property
    def _single(self) -> Any:
        from tokenizers import Tokenizer as Library

        try:
            return Library.from_str(self._plain_json)
        except Exception as error:  # the library raises no other type
            raise UserError(f"this tokenizer.json cannot be used: {' '.join(str(error).split())[:200]}") from None

    @cached_property
    def _batch_encoder(self) -> tuple[str, EncodeBatch]:
        return make_batch_encoder(self._plain_json, self._single)

    # ---- ids to text -----------------------------------------------------------------------------

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes that each id represents, (V,); empty for special tokens."""
        value = {character: byte for byte, character in enumerate(byte_alphabet())}
        table = [b""] * self.vocab_size
        for token, index in self.tokenizer_json["model"]["vocab"].items():
            if index not in self._special_names:
                is_byte_level = all(character in value for character in token)
                table[index] = bytes(map(value.__getitem__, token)) if is_byte_level else token.encode()
        return table

    def byte_lengths(self) -> np.ndarray:
        """Returns the bytes of text of each id, (V,) int32, 0 for special tokens, for bits per byte."""
        return np.array([len(piece) for piece in self.token_bytes], dtype=np.int32)

    @cached_property
    def _special_names(self) -> dict[int, bytes]:
        return {index: name.encode() for name, index in self.special_tokens.items()}

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the bytes of `ids`, with special tokens by name. Raises IndexError for an id outside [0, V)."""
        pieces, names = self.token_bytes, self._special_names
        out = []
        for index in ids:
            if index < 0:
                raise IndexError(f"token id {index} is negative")
            out.append(pieces[index] or names.get(index, b""))
        return b"".join(out)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; bytes that are not UTF-8, such as a part of a character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    # ---- special tokens --------------------------------------------------------------------------

    def _special_id(self, name: str) -> int:
        if name not in self.special_tokens:
            raise UserError(
                f"this tokenizer has no special token {name}; chat needs a tokenizer that `fledgling tokenizer` trained"
            )
        return self.special_tokens[name]

    @property
    def bos_or_none(self) -> int | None:
        """The id that begins every document, under any name of `BOS_NAMES`; None if there is none."""
        return next((self.special_tokens[name] for name in BOS_NAMES if name in self.special_tokens), None)

    @property
    def bos(self) -> int:
        """The id that begins every document. Raises UserError if there is none."""
        return self._special_id("<|bos|>") if self.bos_or_none is None else self.bos_or_none

    @property
    def user_start(self) -> int:
        """The id before a message of the user."""
        return self._special_id("<|user_start|>")

    @property
    def user_end(self) -> int:
        """The id after a message of the user."""
        return self._special_id("<|user_end|>")

    @property
    def assistant_start(self) -> int:
        """The id before a message of the assistant: the end of a prompt."""
        return self._special_id("<|assistant_start|>")

    @property
    def assistant_end(self) -> int:
        """The id after a message of the assistant: sampling stops there."""
        return self._special_id("<|assistant_end|>")

    @property
    def python_start(self) -> int:
        """The id before an expression for the tool."""
        return self._special_id("<|python_start|>")

    @property
    def python_end(self) -> int:
        """The id after an expression for the tool."""
        return self._special_id("<|python_end|>")

    @property
    def output_start(self) -> int:
        """The id before the output of the tool."""
        return self._special_id("<|output_start|>")

    @property
    def output_end(self) -> int:
        """The id after the output of the tool."""
        return self._special_id("<|output_end|>")


def read_training_info(path: Path) -> dict[str, Any]:
    """Returns the contents of training.json in a tokenizer's directory (or that of its file), or {} if missing."""
    folder = path if path.is_dir() else path.parent
    try:
        return json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def bos_prefix(tokenizer: Tokenizer) -> list[int]:
    """Returns the ids that any text begins with: [bos], or [] if the tokenizer has none."""
    return [] if tokenizer.bos_or_none is None else [tokenizer.bos_or_none]


def _build_tokenizer_json(merges: list[bpe.Merge], pattern: str) -> dict[str, Any]:
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


def _without_special_tokens(document: dict[str, Any]) -> str:
    """Returns a tokenizer.json for text alone, without special tokens in any place."""
    names = {token["content"] for token in document.get("added_tokens") or []}
    plain = copy.copy(document)
    plain["added_tokens"], plain["post_processor"] = [], None
    plain["truncation"], plain["padding"] = None, None
    model = plain["model"] = copy.copy(document["model"])
    model["dropout"] = None  # merges left out at random, for training alone: a text has one encoding
    # "left right" of older files: `tokenizers` takes a merge that begins with "#version" for a header
    model["merges"] = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    model["vocab"] = {t: i for t, i in document["model"]["vocab"].items() if t not in names}
    return json.dumps(plain)
