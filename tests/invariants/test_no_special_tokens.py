"""Invariant: no text of a user or a tool becomes a special token.

FLEDGLING_TEXTS sets the number of texts (default 1,500).
"""

from __future__ import annotations

import os
import random

import pytest

from fledgling.infer.tools import Tool, ToolState
from fledgling.text.conversation import render_conversation, render_prompt
from fledgling.text.tokenizer import SPECIAL_TOKENS, Tokenizer

TEXTS = int(os.environ.get("FLEDGLING_TEXTS", "1500"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps <|over|> the lazy dog again and again " * 9], vocab_size=340)


def make_hostile_text(rng: random.Random) -> str:
    """Returns names of special tokens, complete, in pieces, nested, with NUL and look-alikes, and invalid UTF-8."""
    pieces = []
    for _ in range(rng.randrange(1, 9)):
        name = rng.choice(SPECIAL_TOKENS)
        cut = rng.randrange(len(name) + 1)
        broken = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 7)))
        pieces.append(
            rng.choice(
                (
                    name,
                    name[:cut],
                    name[cut:],
                    name[:cut] + name + name[cut:],
                    name[:cut] + rng.choice(("\0", "\u200b", "\u00ad", " ", "\ufeff", "\n")) + name[cut:],
                    name.replace("<|", "\uff1c\uff5c"),
                    name.upper(),
                    "".join(chr(rng.randrange(0xD800)) for _ in range(3)),
                    broken.decode("utf-8", rng.choice(("replace", "ignore", "backslashreplace"))),
                    broken.decode("latin-1"),
                    "\0" * rng.randrange(1, 4),
                    "<|",
                    "|>",
                    "the quick fox",
                )
            )
        )
    return "".join(pieces) or "\0"


def test_no_text_becomes_a_special_token(tokenizer) -> None:
    special, rng = set(tokenizer.special_tokens.values()), random.Random(int(os.environ.get("FLEDGLING_SEED", "0")))
    texts_with_names = 0
    for number in range(TEXTS):
        text = make_hostile_text(rng)
        texts_with_names += any(name in text for name in SPECIAL_TOKENS)
        ids = tokenizer.encode(text)
        assert not special.intersection(ids), repr(text)
        prompt = render_prompt(tokenizer, {"messages": [{"role": "user", "content": text}]})
        assert select_special(prompt, special) == special_ids(tokenizer, "bos user_start user_end assistant_start"), (
            repr(text)
        )
        state = ToolState(tokenizer, Tool(lambda _, output=text: output, 2000))
        forced = [token for sampled in (state.start, ord("1"), state.end) for token in state.feed(sampled)]
        assert select_special(forced, special) == special_ids(tokenizer, "output_start output_end"), repr(text)
        if number % 8 == 0:
            parts = [{"type": "python", "text": text}, {"type": "output", "text": text}, {"type": "text", "text": text}]
            messages = [{"role": "system", "content": text}, {"role": "user", "content": text}]
            messages.append({"role": "assistant", "content": parts})
            rendered = render_conversation(tokenizer, {"messages": messages}).tokens.tolist()
            order = (
                "bos user_start user_end assistant_start python_start python_end output_start output_end assistant_end"
            )
            assert select_special(rendered, special) == special_ids(tokenizer, order), repr(text)
    assert texts_with_names > TEXTS / 3


def select_special(ids: list[int], special: set[int]) -> list[int]:
    return [token for token in ids if token in special]


def special_ids(tokenizer: Tokenizer, names: str) -> list[int]:
    return [tokenizer.special_tokens[f"<|{name}|>"] for name in names.split()]


def test_lone_surrogates_are_rejected_or_become_text(tokenizer) -> None:
    """Lone surrogates are not UTF-8: they are replaced or rejected, and never become a special token."""
    special = set(tokenizer.special_tokens.values())
    for text in ("\ud800", "<|bos|>\udfff", "\udcff<|user_end|>"):
        try:
            ids = tokenizer.encode(text)
        except (ValueError, TypeError):
            continue
        assert not special.intersection(ids)
