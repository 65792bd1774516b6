"""The tokenizer: text to ids and back, stored in a tokenizer.json that other programs read.

`encode` knows no special token, so nothing that a user writes can become one. Special tokens are inserted by id, from
`special_tokens`, by the code that renders a conversation. The ids of the first 256 tokens are the bytes themselves,
and special tokens come last. `tokenizers` encodes a text; `encode_batch` uses `gigatoken`, 10 to 50 times faster, if
it is installed and supports the split (`batch_library` names the one in use). The ids are the same (tested).
"""

from __future__ import annotations

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
from fledgling.config.recipe import require_vocabulary
from fledgling.record.durable import write_file
from fledgling.text import bpe
from fledgling.text.batch_encoding import EncodeBatch, make_batch_encoder
from fledgling.text.bpe import byte_alphabet, replace_surrogates
from fledgling.text.sentence_piece import (
    adds_space,
    is_sentence_piece,
    piece_bytes,
    vocabulary_of,
)
from fledgling.text.template_turns import find_end_of_turn
from fledgling.text.tokenizer_json import LAYOUT, SPECIAL_TOKENS, build_tokenizer_json, without_special_tokens

# of this project, Llama 3, Llama 2 and Mistral, Gemma, GPT-2 and Qwen
MAX_TOKENIZER_BYTES = 1 << 28  # of a tokenizer.json
BOS_NAMES = ("<|bos|>", "<|begin_of_text|>", "<s>", "<bos>", "<|endoftext|>")


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
        self.is_byte_level = '"ByteLevel"' in json.dumps(tokenizer_json.get("pre_tokenizer"))
        if not (model.get("type") == "BPE" and self.is_byte_level) and not is_sentence_piece(tokenizer_json):
            raise UserError(
                f"this tokenizer is {model.get('type', 'of no known kind')}; expected byte-level BPE (GPT-2, Llama 3, "
                "Qwen ...), or BPE or Unigram of SentencePiece, in the tokenizer.json of Hugging Face tokenizers"
            )
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise UserError(
                "this tokenizer marks pieces by a prefix or suffix (continuing_subword_prefix, end_of_word_suffix); "
                "expected byte-level BPE without them"
            )
        self.tokenizer_json = tokenizer_json
        self.training_info = training_info
        added = tokenizer_json.get("added_tokens") or []
        self.special_tokens: dict[str, int] = {t["content"]: t["id"] for t in added if t.get("special", True)}
        self.vocab: dict[str, int] = vocabulary_of(tokenizer_json)
        self.vocab_size: int = max([*self.vocab.values(), *(t["id"] for t in added)]) + 1
        self._plain_json = without_special_tokens(tokenizer_json)

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
            max_characters: characters after which reading stops; None reads all.
            trainer: "auto", "ffbpe" or "tokenizers"; the result is the same.
            progress: is called with the number of characters read so far.

        Raises:
            UserError: if vocab_size is below the minimum, or above what the text supports (a pair that occurs once
                is not merged).
        """
        entries = vocab_size - len(SPECIAL_TOKENS)
        require_vocabulary(vocab_size, letter_tokens)
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
        tokenizer = cls(build_tokenizer_json(merges, pattern))
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
        """Loads a tokenizer.json, or the one in a directory. Raises UserError if it is missing or corrupt."""
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        try:
            if file.stat().st_size > MAX_TOKENIZER_BYTES:
                raise ValueError(f"larger than {MAX_TOKENIZER_BYTES:,} bytes")
            document = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise UserError(f"no tokenizer at {file}; expected a tokenizer.json or a directory with one") from None
        except (ValueError, OSError, RecursionError) as error:
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
        """The library that `encode_batch` uses: "gigatoken" or "tokenizers"."""
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
        for token, index in self.vocab.items():
            if index in self._special_names:
                continue
            if not self.is_byte_level:
                table[index] = piece_bytes(token)
            elif all(character in value for character in token):
                table[index] = bytes(map(value.__getitem__, token))
            else:
                table[index] = token.encode()
        for token in self.tokenizer_json.get("added_tokens") or []:
            if token["content"] not in self.special_tokens:
                table[token["id"]] = token["content"].encode()
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
        """Returns the text of `ids`; bytes that are not UTF-8, such as a part of a character, become U+FFFD.

        The space that SentencePiece puts before a text is removed.
        """
        text = self.decode_bytes(ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if adds_space(self.tokenizer_json) else text

    # ---- the layout of conversations that came with an open model ---------------------------------

    def with_layout(self, layout: dict[str, Any] | None) -> Tokenizer:
        """Returns this tokenizer with the chat template of an open model, which its tokenizer.json then holds.

        A tokenizer with the control tokens of our own layout keeps that one.

        Args:
            layout: chat_template, bos_token, eos_token (texts), stop_ids, at which generation stops, sampling; names,
                of other tokens that the template may use.

        Raises:
            UserError: the template cannot be read, or what ends an answer is not to be found.
        """
        if layout is None or self.can_chat:
            return self
        added = self.tokenizer_json.get("added_tokens") or []
        names = {token["id"]: token["content"] for token in added}
        ends = [layout["eos_token"], *(names[index] for index in layout["stop_ids"] if index in names)]
        ends = list(dict.fromkeys(name for name in ends if name in names.values()))
        if not ends:
            raise UserError("this tokenizer has a chat template, and no token that ends an answer (eos_token)")
        kept = {key: layout[key] for key in ("chat_template", "bos_token", "eos_token")}
        given = {**kept, "end_tokens": ends, "end_of_turn": ends[0], "sampling": layout.get("sampling", {})}
        given |= {"names": layout["names"]} if layout.get("names") else {}
        # some files do not mark what ends an answer as special, and it is: no text of a user may become it
        controls = [{**token, "special": token["content"] in ends or token.get("special", True)} for token in added]
        document = {**self.tokenizer_json, "added_tokens": controls, LAYOUT: given}
        given["end_of_turn"] = find_end_of_turn(Tokenizer(document, self.training_info), ends)
        return Tokenizer(document, self.training_info)

    def without_layout(self) -> Tokenizer:
        """Returns this tokenizer as other programs read it: the layout is in another file of theirs."""
        return Tokenizer({key: value for key, value in self.tokenizer_json.items() if key != LAYOUT})

    @property
    def chat_layout(self) -> dict[str, Any] | None:
        """The chat template and its names, where a model brought its own; None: the layout of conversation.py."""
        return self.tokenizer_json.get(LAYOUT)

    @property
    def sampling_defaults(self) -> dict[str, float]:
        """How an open model's makers sample: temperature, top_k, top_p, repetition_penalty; {} for others."""
        return self.chat_layout.get("sampling", {}) if self.chat_layout else {}

    @property
    def end_tokens(self) -> frozenset[int]:
        """The ids at which an answer ends."""
        ends = [self.special_tokens.get("<|assistant_end|>"), self.bos_or_none]
        if self.chat_layout:
            ends += [self.special_tokens.get(name) for name in self.chat_layout["end_tokens"]]
        return frozenset(token for token in ends if token is not None)

    @property
    def can_chat(self) -> bool:
        """Whether conversations can be rendered: by a layout of its own, or with the tokens of ours."""
        names = self.special_tokens
        return bool(self.chat_layout) or ("<|user_start|>" in names and "<|assistant_end|>" in names)

    def encode_layout(self, text: str) -> list[int]:
        """Returns the ids of a rendered conversation; names of control tokens become these tokens."""
        return self._whole.encode(replace_surrogates(text), add_special_tokens=False).ids

    @cached_property
    def _whole(self) -> Any:
        from tokenizers import Tokenizer as Library

        document = {key: value for key, value in self.tokenizer_json.items() if key != LAYOUT}
        return Library.from_str(json.dumps({**document, "truncation": None, "padding": None}))

    # ---- special tokens --------------------------------------------------------------------------

    def _special_id(self, name: str) -> int:
        if name not in self.special_tokens:
            raise UserError(
                f"this tokenizer has no special token {name}; chat needs a tokenizer that `fledgling tokenizer` trained"
            )
        return self.special_tokens[name]

    @property
    def bos_or_none(self) -> int | None:
        """The id that begins every document: of `BOS_NAMES`, or that of the chat template; None if there is none."""
        layout = self.chat_layout or {}
        names = (*BOS_NAMES, *(layout[key] for key in ("bos_token", "eos_token") if layout.get(key)))
        return next((self.special_tokens[name] for name in names if name in self.special_tokens), None)

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
        return self._special_id(self.chat_layout["end_of_turn"] if self.chat_layout else "<|assistant_end|>")

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
