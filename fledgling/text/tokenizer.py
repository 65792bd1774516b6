"""The tokenizer: text to ids and back, kept in one tokenizer.json that other programs read as it is.

The one idea: there are two roads to an id. Text goes through `encode`, behind which no control token is
registered, so nothing a user writes can become one; control tokens are placed by number, from `special`, by
the code that lays out a conversation. The ids of the first 256 tokens are the bytes themselves; the control
tokens come last.

What it is not: an implementation of BPE. `tokenizers` encodes; long batches go to `gigatoken`, 10 to 50
times faster, where it is installed and knows the split. The ids are the same (a test holds both to it), and
`engine` says which one encodes batches.
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
BOS_NAMES = ("<|bos|>", "<|begin_of_text|>", "<s>", "<|endoftext|>")  # ours, Llama 3, Llama 2, GPT-2


class Tokenizer:
    """A byte-level BPE vocabulary with its control tokens.

    special: control token -> id. training: how it was made (trainer, characters, seconds), when it was made
    here.
    """

    def __init__(self, tokenizer_json: dict[str, Any], training_info: dict[str, Any] | None = None) -> None:
        """Take the parsed contents of a tokenizer.json; raise UserError if it holds no byte-level BPE."""
        model = tokenizer_json.get("model") or {}
        if model.get("type") != "BPE" or '"ByteLevel"' not in json.dumps(tokenizer_json.get("pre_tokenizer")):
            raise UserError(
                f"this tokenizer is {model.get('type', 'of no known kind')}; expected byte-level BPE "
                "(GPT-2, Llama 3, Qwen ...) in the tokenizer.json of Hugging Face tokenizers"
            )
        self.tokenizer_json = tokenizer_json
        self.training_info = training_info
        self.special_tokens: dict[str, int] = {t["content"]: t["id"] for t in tokenizer_json.get("added_tokens") or []}
        ids = [*model["vocab"].values(), *self.special_tokens.values()]
        self.vocab_size: int = max(ids) + 1
        self._plain_json = _without_special_tokens(tokenizer_json)

    # ---- making, loading, saving -----------------------------------------------------------------

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
        """Train on documents.

        vocab_size: entries in all, control tokens included. digits: longest group of digits (1, 2 or 3).
        letters: every " " + ASCII letter is one token (single letters always are: they are bytes).
        characters: read no further than this. trainer: "auto", "ffbpe" or "tokenizers"; the result is the
        same. progress: called with the characters read so far.

        Raises UserError when vocab_size is below the smallest possible, or above what the text supports: a
        pair that occurs once is not a merge.
        """
        entries = vocab_size - len(SPECIAL_TOKENS)
        least = 256 + (52 if letter_tokens else 0)
        if entries < least:
            raise UserError(
                f"tokenizer.vocab_size is {vocab_size}; the bytes{', letters' if letter_tokens else ''} and the "
                f"control tokens alone take {least + len(SPECIAL_TOKENS)}: ask for at least that"
            )
        pattern = bpe.split_pattern(max_digits)
        trainer = bpe.pick_trainer(trainer)
        read = [0]

        def count(total: int) -> None:
            read[0] = total
            if progress:
                progress(total)

        start = perf_counter()
        merges = bpe.fit_merges(
            bpe.learn_merges(texts, entries, max_digits, trainer, max_characters, count), entries, letter_tokens
        )
        tokenizer = cls(_build_tokenizer_json(merges, pattern))
        tokenizer.training_info = {
            "trainer": trainer,
            "characters": read[0],
            "seconds": round(perf_counter() - start, 3),
            "vocab_size": tokenizer.vocab_size,
            "digits": max_digits,
            "letters": letter_tokens,
        }
        if tokenizer.vocab_size < vocab_size:
            raise UserError(
                f"tokenizer.vocab_size is {vocab_size}, but {read[0]:,} characters of text support only "
                f"{tokenizer.vocab_size}: ask for at most {tokenizer.vocab_size}, or give more text"
            )
        return tokenizer

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer.json, or the one in a directory. Raises UserError if it is absent or damaged."""
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
        return cls(document)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write tokenizer.json to `path` (a name ending in .json, or a directory); return the file.

        Written beside its place and renamed, so that no reader meets half a file.
        """
        file = Path(path)
        file = file if file.suffix == ".json" else file / "tokenizer.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(self.tokenizer_json, ensure_ascii=False, indent=1), encoding="utf-8")
        os.replace(partial, file)
        return file

    def fingerprint(self) -> str:
        """SHA-256 of the contents, in hex; it does not depend on the file or its spacing."""
        canonical = json.dumps(self.tokenizer_json, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    # ---- text to ids -----------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; never the id of a control token, whatever the text contains. Thread-safe."""
        return self._single.encode(replace_surrogates(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for each of `texts`, on all cores. Thread-safe."""
        return self._batch_encoder[1]([replace_surrogates(text) for text in texts])

    @property
    def batch_library(self) -> str:
        """The library behind `encode_batch`: "gigatoken" or "tokenizers"."""
        return self._batch_encoder[0]

    @cached_property
    def _single(self) -> Any:
        from tokenizers import Tokenizer as Library

        return Library.from_str(self._plain_json)

    @cached_property
    def _batch_encoder(self) -> tuple[str, EncodeBatch]:
        return make_batch_encoder(self._plain_json, self._single)

    # ---- ids to text -----------------------------------------------------------------------------

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes each id stands for, (V,); empty for control tokens."""
        value = {character: byte for byte, character in enumerate(byte_alphabet())}
        table = [b""] * self.vocab_size
        for token, index in self.tokenizer_json["model"]["vocab"].items():
            if index not in self._special_names:
                known = all(character in value for character in token)
                table[index] = bytes(map(value.__getitem__, token)) if known else token.encode()
        return table

    def byte_lengths(self) -> np.ndarray:
        """Bytes of text each id stands for, int32 (V,), 0 for control tokens; bits per byte divides by it."""
        return np.array([len(piece) for piece in self.token_bytes], dtype=np.int32)

    @cached_property
    def _special_names(self) -> dict[int, bytes]:
        return {index: name.encode() for name, index in self.special_tokens.items()}

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, control tokens written by name. Raises IndexError for an id outside [0, V)."""
        pieces, names = self.token_bytes, self._special_names
        out = []
        for index in ids:
            if index < 0:
                raise IndexError(f"token id {index} is negative")
            out.append(pieces[index] or names.get(index, b""))
        return b"".join(out)

    def decode(self, ids: Iterable[int]) -> str:
        """`decode_bytes` as text; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    # ---- control tokens --------------------------------------------------------------------------

    def _special_id(self, name: str) -> int:
        if name not in self.special_tokens:
            raise UserError(
                f"this tokenizer has no control token {name}; chat needs one that `fledgling tokenizer` made"
            )
        return self.special_tokens[name]

    @property
    def bos_or_none(self) -> int | None:
        """The id that begins every document, whatever its name (BEGINNINGS); None where the tokenizer has none."""
        return next((self.special_tokens[name] for name in BOS_NAMES if name in self.special_tokens), None)

    @property
    def bos(self) -> int:
        """`start`, where there must be one. Raises UserError where there is none."""
        return self._special_id("<|bos|>") if self.bos_or_none is None else self.bos_or_none

    @property
    def user_start(self) -> int:
        """The id before what the user says."""
        return self._special_id("<|user_start|>")

    @property
    def user_end(self) -> int:
        """The id after what the user says."""
        return self._special_id("<|user_end|>")

    @property
    def assistant_start(self) -> int:
        """The id before what the assistant says: where a prompt ends."""
        return self._special_id("<|assistant_start|>")

    @property
    def assistant_end(self) -> int:
        """The id after what the assistant says: where sampling stops."""
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
        """The id before what the tool answered."""
        return self._special_id("<|output_start|>")

    @property
    def output_end(self) -> int:
        """The id after what the tool answered."""
        return self._special_id("<|output_end|>")


def bos_prefix(tokenizer: Tokenizer) -> list[int]:
    """The token that text of any kind begins with, as a list: bos, or what another family's tokenizer has for it."""
    return [] if tokenizer.bos_or_none is None else [tokenizer.bos_or_none]


def _build_tokenizer_json(merges: list[bpe.Merge], pattern: str) -> dict[str, Any]:
    """The contents of a tokenizer.json: ids are bytes, then merges in the order learned, then SPECIAL."""
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
    """The tokenizer.json of the road for ordinary text: control tokens neither known nor entries."""
    names = {token["content"] for token in document.get("added_tokens") or []}
    plain = copy.copy(document)
    plain["added_tokens"], plain["post_processor"] = [], None
    plain["truncation"], plain["padding"] = None, None
    plain["model"] = copy.copy(document["model"])
    plain["model"]["vocab"] = {t: i for t, i in document["model"]["vocab"].items() if t not in names}
    return json.dumps(plain)
